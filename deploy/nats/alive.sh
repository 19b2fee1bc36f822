#!/bin/sh
# Fails for a NATS server that only its next start can mend: one that does not answer, has switched
# JetStream off, or has met a write error. It does the latter two where its disk is full (2.9 the
# first, 2.15 the second) and goes on so, however much room there is. One that merely has no quorum,
# or is behind, is left alone. Asked by start.sh, and by the liveness probe of Kubernetes.
#
#   NATS_MONITOR_PORT  where the server tells of its health
set -eu

# `wget` of Alpine prints nothing of an answer that is not a 200, and what counts here is what a 503
# says.
ask() {
  printf 'GET %s HTTP/1.0\r\n\r\n' "$1" | timeout 3 nc 127.0.0.1 "$NATS_MONITOR_PORT" 2>/dev/null
}

case $(ask '/healthz?js-enabled-only=true') in
  'HTTP/1.'?' 200 '*) ;;
  *) echo "it does not answer, or JetStream is off"; exit 1 ;;
esac
case $(ask /healthz) in
  *'write error'*) echo "it has met a write error"; exit 1 ;;
esac
