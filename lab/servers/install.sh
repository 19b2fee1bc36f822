#!/bin/sh
# Installs Debian packages for the tests and nothing more: no service is started, no database
# cluster is created. Usage: install.sh <package>…   Run under a lock; whoever comes second finds
# the package installed.
set -eu
export DEBIAN_FRONTEND=noninteractive
mark='# written by the tests of tabulum-kernel'

# Maintainer scripts ask this file whether they may start a service: 101 says no. One that is there
# already is left alone.
policy=/usr/sbin/policy-rc.d
# Read by postgresql-common when the first server is installed.
cluster=/etc/postgresql-common/createcluster.d/tabulum-tests.conf

remove_ours() {
  if [ -f "$policy" ] && grep -qF "$mark" "$policy"; then rm -f "$policy"; fi
  rm -f "$cluster"
}
trap remove_ours EXIT
trap 'exit 1' HUP INT TERM

if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\n%s\nexit 101\n' "$mark" >"$policy"
  chmod 755 "$policy"
fi
mkdir -p "$(dirname "$cluster")"
printf '%s\ncreate_main_cluster = false\n' "$mark" >"$cluster"

apt-get -o DPkg::Lock::Timeout=300 update
apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@"
