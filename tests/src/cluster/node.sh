#!/bin/bash
# Turns a booted virtual machine into a Kubernetes node: state disk, network, containerd, kubelet.
#
# Runs inside the machine at every boot. What a real node keeps on its disk lies on the state disk (/dev/vdb), which is
# formatted only when it is blank; so images, kubelet state, /var/lib/quarry and /etc's identity outlive a reboot, and
# /run, processes and mounts do not. NODE_SETTINGS names a file of shell assignments (see `cluster/node.rs`).
# With PREPARE_ONLY=yes it only fills the state disk with images, to be copied for many nodes.
set -euo pipefail
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C
# shellcheck disable=SC1090
. "$NODE_SETTINGS"

say() { echo "$* ($(cut -d' ' -f1 /proc/uptime) s after power-on)"; }
fail() { echo "$*" >&2; exit 1; }
# Waits for a condition: seconds, what for, command.
await() {
  local limit=$1 what=$2 end; shift 2
  end=$((SECONDS + limit))
  until "$@" > /dev/null 2>&1; do ((SECONDS < end)) || fail "no $what after $limit s"; sleep 0.2; done
}
# Whether a disk is blank; what cannot be told is no answer.
blank() {
  local result=0
  blkid -p "$1" > /dev/null || result=$?
  case $result in 0) return 1 ;; 2) return 0 ;; *) fail "cannot tell what is on $1: blkid ended with $result" ;; esac
}
# Keeps a folder on the state disk; what the image has there is copied once.
keep() {
  local kept="/state/$1"
  mkdir -p "/$1"
  if [[ ! -d $kept ]]; then
    mkdir -p "${kept%/*}"
    rm -rf "$kept.new"; cp -a "/$1" "$kept.new"; mv "$kept.new" "$kept"
  fi
  mount --bind "$kept" "/$1"
}
# A service that dies is started again, as an init system would.
serve() {
  local name=$1; shift
  setsid bash -c 'log=/var/log/node/$1.log; shift
    while :; do result=0; "$@" >> "$log" 2>&1 || result=$?; echo "--- ended with $result" >> "$log"; sleep 1; done' \
    serve "$name" "$@" < /dev/null > /dev/null 2>&1 &
}

await 10 "state disk" test -b /dev/vdb
if blank /dev/vdb; then mkfs.ext4 -q -E lazy_itable_init=1,lazy_journal_init=1 /dev/vdb; fi
mkdir -p /state
mount -o discard /dev/vdb /state
for folder in var/lib/containerd var/lib/kubelet var/lib/cni var/lib/quarry var/log/pods var/log/containers var/log/node; do keep $folder; done
say "state disk mounted"

# The machine's first process becomes it at the end of the boot.
if [[ ${CGROUP_DRIVER-} = systemd ]]; then await 60 systemd systemctl is-active --quiet machine.target; fi

mkdir -p /run/containerd
serve containerd containerd --config "$SETTINGS_FOLDER/containerd.toml"

if [[ ${PREPARE_ONLY-} != yes ]]; then
  keep etc/lvm
  [[ -s /state/machine-id ]] || tr -d - < /proc/sys/kernel/random/uuid > /state/machine-id
  mount --bind /state/machine-id /etc/machine-id
  boots=0
  [[ ! -s /state/boots ]] || boots=$(< /state/boots)
  echo $((boots + 1)) > /state/boots
  mount --make-rshared /

  for route in $POD_ROUTES; do ip route replace "${route%=*}" via "${route#*=}"; done
  sysctl -qw net.ipv4.ip_forward=1 net.bridge.bridge-nf-call-iptables=1
  # There is no kube-proxy: the one service that in-cluster clients need leads to the API server.
  iptables-restore --noflush <<X
*nat
-A OUTPUT -d $SERVICE_ADDRESS/32 -p tcp --dport 443 -j DNAT --to-destination $API_ADDRESS
-A PREROUTING -d $SERVICE_ADDRESS/32 -p tcp --dport 443 -j DNAT --to-destination $API_ADDRESS
COMMIT
X
  mkdir -p /etc/cni/net.d
  cp "$SETTINGS_FOLDER/cni.conflist" /etc/cni/net.d/10-quarry.conflist
  say "network set up, boot $((boots + 1)) of this node"

  # The volume group is the admin's work, done once, as the documentation tells it.
  if [[ -n $VOLUME_GROUP ]]; then
    await 10 "data disk" test -b /dev/vda
    if blank /dev/vda; then
      vgcreate --quiet --metadatasize 64m "$VOLUME_GROUP" /dev/vda > /dev/null
      say "made volume group $VOLUME_GROUP"
    fi
  fi
fi

await 60 containerd ctr version
say "containerd answers"
mkdir -p /state/images
for image in $IMAGES; do
  # The file's name carries the hash of its content.
  mark=/state/images/${image##*/}
  if [[ -e $mark ]]; then continue; fi
  ctr -n k8s.io images import "$image" > /dev/null
  touch "$mark"
  say "imported ${image##*/}"
done
if [[ ${PREPARE_ONLY-} = yes ]]; then sync; exit 0; fi

serve kubelet "$KUBELET" --config "$SETTINGS_FOLDER/kubelet.json" --kubeconfig "$SETTINGS_FOLDER/kubelet.kubeconfig" \
  --hostname-override "$NODE_NAME" --node-ip "$NODE_ADDRESS" --root-dir /var/lib/kubelet
await 300 kubelet busybox wget -q -O /dev/null http://127.0.0.1:10248/healthz
say "kubelet is healthy"
