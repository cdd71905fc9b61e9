# Every task there is. `./dev TASK` installs what is missing, then runs the task from here.

set positional-arguments := true
set shell := ["bash", "-euo", "pipefail", "-c"]

testbed := "target/debug/testbed"

# A two-node cluster, pods with volumes, what becomes of them, how long it took (--keep: leave it running).
demo *args: _testbed
    @{{ testbed }} demo "$@"

# Every check, or the parts named: the recipes that say "Part of test" (a name that is none lists them).
test *parts:
    #!/usr/bin/env bash
    set -uo pipefail
    # The parts in their order, each with what it may take on two cores without KVM when nothing needs to be built or downloaded, in
    # seconds. The suites in virtual machines end themselves at theirs (tests/src/suite/budget.rs). Another part that takes longer is
    # marked, not failed: a first run builds much.
    all=(fmt=10 lint=180 unit=180 deny=30 image-recipe=60 chart=60 observe=120 kernel=3000 kernel-udev=1800 sanity=1500 cluster=5400
        capacity=7200 faults=1800 power=1200 crash=5400 isolation=1200)
    # What runs only by its name: parts of these that are quick, and what takes hours.
    named=(crash-sample=600 kernel-core=900 cluster-core=1200 long=14400)
    declare -A budget
    for part in "${all[@]}" "${named[@]}"; do budget[${part%=*}]=${part#*=}; done
    (($# > 0)) || set -- "${all[@]%=*}"
    for part in "$@"; do
        if [[ -z ${budget[$part]-} ]]; then
            echo "test: there is no part \`$part\`; parts are ${all[*]%=*}; only by name: ${named[*]%=*}" >&2
            exit 2
        fi
    done
    # One part's failure does not hide what the next would say.
    trap 'echo "test: stopped" >&2; exit 130' INT TERM
    table= passed=0 failed=0
    for part in "$@"; do
        printf '\n== %s\n' "$part"
        start=$SECONDS
        '{{ just_executable() }}' --justfile '{{ justfile() }}' "$part"
        case $? in
            0) result=passed passed=$((passed + 1)) ;;
            # A suite's machine did not come up, or died: nothing is known of what was to be tested. That is no pass.
            2) result='NO VERDICT' failed=$((failed + 1)) ;;
            *) result=FAILED failed=$((failed + 1)) ;;
        esac
        took=$((SECONDS - start))
        ((took <= budget[$part])) || result="$result, over its budget"
        table+=$(printf '%-12s %5d s %6d s  %s' "$part" "$took" "${budget[$part]}" "$result")$'\n'
    done
    printf '\n%-12s %7s %8s  %s\n%s\n' part time budget result "$table"
    printf 'parts: %d passed, %d failed\n' "$passed" "$failed"
    ((failed == 0))

# Measurements. `bench create`: creating and deleting volumes next to bare LVM and to other drivers' commands. `bench journal`: what the
# journal costs, and starting with many volumes. `bench scrape`: what a scrape of the metrics costs. `bench isolation`: shares by weights.
# `bench capacity`: how soon changes are published, and what thousands of nodes cost.
bench *args: _testbed
    @{{ testbed }} bench "$@"

# Draw the dashboards anew, for docs/pictures, from what a Prometheus sees of a test cluster.
pictures: _testbed
    mkdir -p docs/pictures
    QUARRY_PICTURES="$PWD/docs/pictures" {{ testbed }} suite cluster -- observe::

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
    #!/usr/bin/env bash
    set -euo pipefail
    cargo clippy --workspace --all-features --all-targets --locked -- --deny warnings
    # What a plain `cargo test` does not run, `--all-targets` does not look at either.
    suites=$(sed -n '/^\[\[test\]\]/{n;s/^name = "\(.*\)"$/--test=\1/p}' tests/Cargo.toml)
    # shellcheck disable=SC2086
    cargo clippy --workspace --all-features $suites --locked -- --deny warnings

# Part of test: unit and property tests. Needs no root and no virtual machine.
unit:
    cargo test --workspace --locked

# Part of test: licences, sources and versions of what comes from outside; its known vulnerabilities where their database is reachable.
deny:
    #!/usr/bin/env bash
    set -euo pipefail
    cargo deny --locked check bans licenses sources
    if GIT_TERMINAL_PROMPT=0 timeout 60 cargo deny fetch db 2>/dev/null; then
        cargo deny --locked check --disable-fetch advisories
    else
        echo 'deny: the database of advisories cannot be reached from here: known vulnerabilities were NOT checked' >&2
    fi

# Part of test: what the image recipe makes, and what it refuses.
image-recipe:
    cargo test --locked --package quarry-tests --test image

# Part of test: the Helm chart, what it renders and what it refuses.
chart:
    cargo test --locked --workspace --test chart

# Part of test: metrics, dashboards and alerts: every query and every rule against a real Prometheus.
observe:
    cargo test --locked --package quarry-tests --test observe

# Part of test: the driver on real LVM, in a virtual machine without udevd.
kernel *args: _testbed
    @{{ testbed }} suite kernel "$@"

# Of that suite what volumes are made of, less what takes minutes, for where time is short.
kernel-core *args: _testbed
    @{{ testbed }} suite kernel -- volumes:: behind:: --skip a_full_metadata_area "$@"

# Part of test: with udevd, what has to do with devices' nodes: volumes and the node's requests. `kernel --udev` runs all of it there.
kernel-udev *args: _testbed
    @{{ testbed }} suite kernel --udev -- bed:: volumes:: node:: "$@"

# Part of test: power cuts: what was acknowledged is there after each, what was not is either there or not.
power *args: _testbed
    @{{ testbed }} suite power "$@"

# Part of test: disks that hang, fail, fill up and come back, commands that do not end, and the driver's own end.
faults *args: _testbed
    @{{ testbed }} suite faults -- "$@"

# Part of test: shares and limits of a disk's tenants, measured.
isolation *args: _testbed
    @{{ testbed }} suite isolation -- "$@"

# Part of test: csi-sanity against the driver, thin and thick, mounts and block devices.
sanity *args: _testbed
    @{{ testbed }} suite sanity "$@"

# Part of test: the driver, LVM's commands, or both killed at every point of every operation. Words pick a part: `crash "lvm creates thin"`.
crash *args: _testbed
    @{{ testbed }} suite crash -- "$@"

# The same with one death in eight, another eighth each time, for where time is short. QUARRY_CRASH_SAMPLE=3/8 chooses one.
crash-sample *args: _testbed
    @QUARRY_CRASH_SAMPLE="${QUARRY_CRASH_SAMPLE:-8}" QUARRY_CRASH_SECONDS="${QUARRY_CRASH_SECONDS:-30}" {{ testbed }} suite crash -- "$@"

# Part of test: Kubernetes on two nodes: claims, pods, reboots, a full volume group.
cluster *args: _testbed
    @{{ testbed }} suite cluster "$@"

# Of that suite a pod's device and filesystems, and weights below both of the kubelet's cgroup drivers, for where time is short.
cluster-core *args: _testbed
    @{{ testbed }} suite cluster -- volumes::a_block_claim shares::weights "$@"

# Part of test: what the scheduler is told about room, on three nodes: filled up, killed, restarted, updated, uninstalled.
capacity *args: _testbed
    # Three nodes on two cores that emulate theirs: there every instruction of the driver counts, more than the time to build it.
    @CARGO_PROFILE_DEV_OPT_LEVEL=1 {{ testbed }} suite capacity "$@"

# What goes wrong rarely: property tests with many more cases, and the suites in virtual machines over and over. Hours, not in CI.
long times="10": _testbed
    #!/usr/bin/env bash
    set -uo pipefail
    trap 'echo "long: stopped" >&2; exit 130' INT TERM
    worst=0
    note() {
        local code=$?
        ((code == 0)) || printf 'long: %s ended with exit code %s\n' "$1" "$code" >&2
        ((code <= worst)) || worst=$code
    }
    PROPTEST_CASES=20000 cargo test --locked --workspace
    note 'property tests'
    for ((round = 1; round <= {{ times }}; round++)); do
        printf '\nlong: round %s of %s\n' "$round" '{{ times }}'
        {{ testbed }} suite kernel --no-udev --udev
        note "round $round of kernel"
        {{ testbed }} suite sanity --no-udev --udev
        note "round $round of sanity"
        QUARRY_CRASH_SECONDS=900 {{ testbed }} suite crash
        note "round $round of crash"
        {{ testbed }} suite cluster
        note "round $round of cluster"
    done
    exit "$worst"

# The test bed itself; its own recipe, so that a first build shows its progress.
_testbed:
    @cargo build --locked --workspace --bin testbed
