# Every task there is. `./dev TASK` installs what is missing, then runs the task from here.

set positional-arguments := true
set shell := ["bash", "-euo", "pipefail", "-c"]

testbed := "target/debug/testbed"

# A two-node cluster, pods with volumes, what becomes of them, how long it took (--keep: leave it running).
demo *args: _testbed
    @{{ testbed }} demo "$@"

# Every check, or those named: fmt lint unit deny chart kernel kernel-udev sanity cluster; and long, never part of all.
test *parts:
    #!/usr/bin/env bash
    set -uo pipefail
    # What a part may take on two cores without KVM when nothing needs to be built or downloaded, in seconds. A part that takes longer is
    # marked, not failed: a first run builds Kubernetes too.
    declare -A budget=(
        [fmt]=10 [lint]=180 [unit]=180 [deny]=30 [chart]=120
        [kernel]=480 [kernel-udev]=480 [sanity]=480 [cluster]=720 [long]=7200
    )
    (($# > 0)) || set -- fmt lint unit deny chart kernel kernel-udev sanity cluster
    for part in "$@"; do
        if [[ -z ${budget[$part]-} ]]; then
            echo "test: there is no part \`$part\`; parts are fmt lint unit deny chart kernel kernel-udev sanity cluster long" >&2
            exit 2
        fi
    done
    # One part's failure does not hide what the next would say.
    trap 'echo "test: stopped" >&2; exit 130' INT TERM
    table= passed=0 failed=0
    for part in "$@"; do
        printf '\n== %s\n' "$part"
        start=$SECONDS
        if '{{ just_executable() }}' --justfile '{{ justfile() }}' "$part"; then
            result=passed
            passed=$((passed + 1))
        else
            result=FAILED
            failed=$((failed + 1))
        fi
        took=$((SECONDS - start))
        ((took <= budget[$part])) || result="$result, over its budget"
        table+=$(printf '%-12s %5d s %6d s  %s' "$part" "$took" "${budget[$part]}" "$result")$'\n'
    done
    printf '\n%-12s %7s %8s  %s\n%s\n' part time budget result "$table"
    printf 'parts: %d passed, %d failed\n' "$passed" "$failed"
    ((failed == 0))

# Measurements. `bench create`: creating and deleting volumes next to bare LVM and to other drivers' commands.
bench *args: _testbed
    @{{ testbed }} bench "$@"

# A command on a node of the cluster that `demo --keep` left running, e.g. `node quarry-1 lvs`.
node *args: _testbed
    @{{ testbed }} node "$@"

# Stop what `demo --keep` left running.
stop: _testbed
    @{{ testbed }} stop

# The driver's container image as a docker-archive; options as of manifests/image/build (target/quarry-driver.tar without any).
image *args:
    #!/usr/bin/env bash
    set -euo pipefail
    (($# > 0)) || set -- --out target/quarry-driver.tar
    exec manifests/image/build "$@"

# Rewrite the sources as rustfmt wants them.
format:
    cargo fmt --all

# Part of test: the sources are as rustfmt wants them.
fmt:
    cargo fmt --all --check

# Part of test: clippy, warnings are errors.
lint:
    cargo clippy --workspace --all-targets --locked -- --deny warnings

# Part of test: unit and property tests. Needs no root and no virtual machine.
unit:
    cargo test --workspace --locked

# Part of test: licences, sources and versions of what comes from outside; its known vulnerabilities where their database is reachable.
deny:
    #!/usr/bin/env bash
    set -euo pipefail
    cargo deny --locked check bans licenses sources
    if GIT_TERMINAL_PROMPT=0 timeout 60 cargo deny fetch db; then
        cargo deny --locked check --disable-fetch advisories
    else
        echo 'deny: the database of advisories cannot be reached from here: known vulnerabilities were NOT checked' >&2
    fi

# Part of test: the Helm chart, what it renders and what it refuses.
chart:
    cargo test --locked --workspace --test chart

# Part of test: the driver on real LVM, in a virtual machine without udevd.
kernel *args: _testbed
    @{{ testbed }} suite kernel "$@"

# Part of test: the same with udevd.
kernel-udev *args: _testbed
    @{{ testbed }} suite kernel --udev "$@"

# Part of test: csi-sanity against the driver, thin and thick, mounts and block devices.
sanity *args: _testbed
    @{{ testbed }} suite sanity "$@"

# Part of test: Kubernetes on two nodes: claims, pods, reboots, a full volume group.
cluster *args: _testbed
    @{{ testbed }} suite cluster "$@"

# Repeats of what goes wrong rarely; hours, not in CI.
long *args: _testbed
    @{{ testbed }} suite long "$@"

# The test bed itself; its own recipe, so that a first build shows its progress.
_testbed:
    @cargo build --locked --workspace --bin testbed
