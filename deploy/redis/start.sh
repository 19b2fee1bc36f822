#!/bin/sh
# Starts Redis with redis.conf and its users. Arguments are passed on (`--port 7000`, `--maxmemory
# 2gb`).
#
#   REDIS_KERNEL_PASSWORD  the kernel
#   REDIS_ADMIN_PASSWORD   people: everything. Optional; without it there is no such user
#   REDIS_DATA_DIR         where Redis keeps its files, /data unless set
#
# The users go in through standard input and as hashes, so that no password is in a file or in the
# list of processes.
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)

hash() {
  printf %s "$1" | sha256sum | cut -d ' ' -f 1
}

# Keys, streams, scripts, publish and subscribe. Of commands that tell about the server just those
# that the kernel asks at its start. TIME is in no category, and the scripts that keep limits need
# it.
kernel="user kernel on #$(hash "${REDIS_KERNEL_PASSWORD:?is not set}") ~* &* -@all"
kernel="$kernel +@connection +@read +@write +@pubsub +@transaction +@scripting -@admin -@dangerous"
kernel="$kernel -script|flush -script|kill -function +time +info +config|get +cluster|slots +cluster|shards +cluster|info"

admin=
if [ -n "${REDIS_ADMIN_PASSWORD:-}" ]; then
  admin="user admin on #$(hash "$REDIS_ADMIN_PASSWORD") ~* &* +@all"
fi
unset REDIS_KERNEL_PASSWORD REDIS_ADMIN_PASSWORD

# Nobody can be the default user, but before Redis 8.6 the append-only file is read with its
# permissions: without them each transaction in it, and each script that wrote twice, is left out
# without a word (https://github.com/redis/redis/issues/14541).
exec redis-server "$here/redis.conf" --dir "${REDIS_DATA_DIR:-/data}" "$@" - <<USERS
user default reset off ~* &* +@all
$kernel
$admin
USERS
