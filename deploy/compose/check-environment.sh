#!/bin/sh
# Run before everything else of docker-compose.yml. Refuses passwords that would not work in URLs and in the configuration of
# NATS, and the published ones of .env.example unless only this machine can reach the cluster.
set -eu

failed=
refuse() {
  echo "$1" >&2
  failed=yes
}

example=
for name in POSTGRES_PASSWORD TABULUM_OWNER_PASSWORD TABULUM_PASSWORD REDIS_KERNEL_PASSWORD REDIS_ADMIN_PASSWORD \
  NATS_ROUTE_PASSWORD NATS_KERNEL_PASSWORD NATS_ADMIN_PASSWORD NATS_OBSERVER_PASSWORD NATS_SYSTEM_PASSWORD WEBHOOK_SECRET_KEY; do
  eval "value=\${$name:-}"
  case $value in
    example-* | 6578616d706c65*) example="$example $name" ;;
  esac
  case $name:$value in
    *:) refuse "$name is not set." ;;
    # Hexadecimal; the kernel checks it.
    WEBHOOK_SECRET_KEY:*) ;;
    *:[!a-zA-Z]* | *:*[!a-zA-Z0-9_-]*) refuse "$name must be letters, digits, - and _, with a letter first." ;;
  esac
  if [ "${#value}" -lt 16 ]; then refuse "$name must have at least 16 characters."; fi
done

case ${ENVIRONMENT:-} in
  development | production) ;;
  *) refuse "ENVIRONMENT must be development or production." ;;
esac
if [ -n "$example" ]; then
  advice="has the value of .env.example, which is public. Make new ones: sh deploy/compose/make-environment.sh"
  if [ "${ENVIRONMENT:-}" != development ]; then
    for name in $example; do refuse "$name $advice"; done
  elif [ "${PUBLISH_ADDRESS:-}" != 127.0.0.1 ]; then
    refuse "PUBLISH_ADDRESS must be 127.0.0.1 while a password $advice"
  fi
fi
[ -z "$failed" ]
