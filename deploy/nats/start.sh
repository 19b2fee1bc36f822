#!/bin/sh
# Starts a NATS server, and ends it when only another start can mend it: alive.sh says when. Whoever
# runs it starts it again (`restart` in docker-compose.yml). Kubernetes needs no such thing: its
# liveness probe asks the same. Arguments: the server's command line.
#
#   NATS_MONITOR_PORT  where the server tells of its health
set -eu
# Seconds between two questions, and how often in a row the answer has to be no: half a minute, in
# which an operator may see it.
interval=${NATS_WATCH_SECONDS:-5}
times=6
alive=$(dirname "$0")/alive.sh

has_started() {
  wget -q -T 3 -O /dev/null "http://127.0.0.1:$NATS_MONITOR_PORT/healthz?js-server-only=true" 2>/dev/null
}

watch() {
  # A server that reads a large log at its start takes no clients, and has no JetStream yet.
  until has_started; do
    sleep "$interval"
    kill -0 "$1" 2>/dev/null || return 0
  done
  failed=0
  while kill -0 "$1" 2>/dev/null; do
    if reason=$(sh "$alive"); then failed=0; else failed=$((failed + 1)); fi
    if [ "$failed" -ge "$times" ]; then
      echo "Ending the server, so that it is started again: $reason" >&2
      kill -TERM "$1"
      return 0
    fi
    sleep "$interval"
  done
}

# The server takes the place of this shell, so that signals reach it.
watch $$ &
exec "$@"
