#!/usr/bin/env bash
# Runs a command in namespaces of its own (processes, mounts, network), in which a kubelet finds a
# machine that it may change:
#
#   tests/kubelet/namespace.sh FOLDER COMMAND…
#
# When the command ends, or this script is killed, the kernel kills every process in there,
# containers included, and drops the mounts. The cgroups stay, so a process outside waits for the
# last process inside and removes them. FOLDER holds what is temporary; whoever calls removes it.
set -euo pipefail

# What the kubelet writes into the kernel, which has one of each for all namespaces.
SYSCTLS=(vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops
  kernel/keys/root_maxkeys kernel/keys/root_maxbytes)

fail() {
  echo "the kubelet's lab: $*" >&2
  exit 1
}

outside() {
  local folder=$1 name=${1##*/}
  ((EUID == 0)) || fail "run it as root, for namespaces and cgroups"
  [[ ! -e /sys/fs/cgroup/cgroup.controllers ]] ||
    fail "this machine has cgroup v2 alone, which wasn't tried: run it where there is v1"
  # The end of the pipe whose other end all processes inside hold.
  exec 9> >(
    trap '' INT TERM HUP
    cat >/dev/null
    remove_cgroups "$name"
  )
  enter_cgroups "$name"
  TMPDIR=$folder exec unshare --mount --net --cgroup --pid --fork --kill-child --mount-proc \
    --propagation private "$0" --inside "$@"
}

# Makes a cgroup below that of this process in each hierarchy, and enters it.
enter_cgroups() {
  local mounted below file own
  # Entering the first changes the file.
  own=$(</proc/self/cgroup)
  while IFS=: read -r _ mounted below; do
    mounted=/sys/fs/cgroup/${mounted#name=}
    [[ -n ${mounted##*/} ]] || mounted=/sys/fs/cgroup/unified
    [[ -d $mounted ]] || continue
    below=$mounted${below%/}
    mkdir "$below/$1"
    # A new one has no processor and no memory.
    for file in cpuset.cpus cpuset.mems; do
      [[ ! -e $below/$file ]] || cat "$below/$file" >"$below/$1/$file"
    done
    echo $$ >"$below/$1/cgroup.procs"
  done <<<"$own"
}

# Removes them, and those that the kubelet has made below them.
remove_cgroups() {
  local attempt
  for attempt in {1..50}; do
    # The paths vanish under its hands.
    find /sys/fs/cgroup -depth -type d \( -path "*/$1" -o -path "*/$1/*" \) \
      -exec rmdir {} \; 2>/dev/null || true
    [[ -n $(find /sys/fs/cgroup -type d -name "$1" 2>/dev/null) ]] || return 0
    sleep 0.1
  done
}

# As process 1. Bash reaps the processes whose parents have ended.
inside() {
  local folder=$1 file cgroup whole
  shift
  ip link set lo up
  # The control plane, the node and the Services: Pods reach these, as no address of 127.0.0.0/8.
  # Connections come from the node's own address, as kube-proxy refuses others of Services.
  ip addr add 10.77.0.128/24 dev lo
  for file in "${SYSCTLS[@]}"; do
    mkdir -p "$folder/sysctl/${file%/*}"
    cat "/proc/sys/$file" >"$folder/sysctl/$file"
    mount --bind "$folder/sysctl/$file" "/proc/sys/$file"
  done
  # In place of each hierarchy, the part of it that is ours.
  mkdir "$folder/cgroup"
  find /sys/fs/cgroup -type d -name "${folder##*/}" -prune | while read -r cgroup; do
    whole=$(findmnt -no TARGET --target "$cgroup")
    mount --bind "$cgroup" "$folder/cgroup"
    umount "$whole"
    mount --move "$folder/cgroup" "$whole"
  done
  mount -t tmpfs -o mode=755 tmpfs /run
  # What network plugins remember.
  mkdir -p /var/lib/cni
  mount -t tmpfs tmpfs /var/lib/cni
  echo 'nameserver 127.0.0.1' >"$folder/resolv.conf"
  mount --bind "$folder/resolv.conf" /etc/resolv.conf
  # Containers get their mounts from here.
  mount --make-rshared /
  "$@"
}

case $1 in
--inside) inside "${@:2}" ;;
*) outside "$@" ;;
esac
