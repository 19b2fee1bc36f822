#!/bin/sh
# Run before everything else of docker-compose.yml. Refuses passwords that would not work in URLs
# and in the configuration of NATS, the published ones of .env.example unless only this machine can
# reach the cluster, and what would end in containers that start again and again.
set -eu

failed=
refuse() {
  echo "$1" >&2
  failed=yes
}

is_like() {
  printf '%s\n' "$1" | grep -Eqx "$2"
}

example=
for name in POSTGRES_PASSWORD TABULUM_OWNER_PASSWORD TABULUM_PASSWORD TABULUM_OBSERVER_PASSWORD REDIS_KERNEL_PASSWORD \
  REDIS_ADMIN_PASSWORD NATS_ROUTE_PASSWORD NATS_KERNEL_PASSWORD NATS_ADMIN_PASSWORD NATS_OBSERVER_PASSWORD NATS_SYSTEM_PASSWORD WEBHOOK_SECRET_KEY; do
  eval "value=\${$name:-}"
  case $value in
    example-* | 6578616d706c65*) example="$example $name" ;;
  esac
  case $name:$value in
    *:) refuse "$name is not set." ;;
    WEBHOOK_SECRET_KEY:*)
      is_like "$value" '[0-9a-fA-F]{64}(, *[0-9a-fA-F]{64})*' ||
        refuse "$name must be 64 hexadecimal digits, such as openssl rand -hex 32, or a list of such with commas."
      ;;
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

for name in API_REPLICAS WORKER_REPLICAS OBSERVE_REPLICAS; do
  eval "value=\${$name:-}"
  is_like "$value" '[1-9][0-9]*' || refuse "$name must be a number, at least 1."
done
# So many HAProxy finds (deploy/haproxy/backend-dns.cfg).
for name in API_REPLICAS OBSERVE_REPLICAS; do
  eval "value=\${$name:-}"
  ! is_like "$value" '[1-9][0-9]{2,}|3[3-9]|[4-9][0-9]' || refuse "$name must be at most 32."
done

# Refuses a setting that has the value of another one of its kind.
taken=
is_own() {
  case " $taken" in
    *" $2="*) other=${taken%" $2="*} && refuse "$1 must not be the same as ${other##* }." ;;
  esac
  taken="$taken $1 $2="
}
# Docker takes 0 and a range too, and chooses one itself.
for name in PUBLISH_PORT OBSERVE_PORT PROMETHEUS_PORT; do
  eval "value=\${$name:-}"
  if is_like "$value" '[1-9][0-9]{0,4}' && [ "$value" -le 65535 ]; then is_own "$name" "$value"; else
    refuse "$name must be one port, such as 8080."
  fi
done
for name in ENTRY_SUBNET OBSERVERS_SUBNET PUBLISHED_SUBNET OUTBOUND_SUBNET; do
  eval "value=\${$name:-}"
  if is_like "$value" '([0-9]{1,3}\.){3}[0-9]{1,3}/([89]|[12][0-9])'; then is_own "$name" "$value"; else
    refuse "$name must be a range of addresses, such as 10.213.88.0/24."
  fi
done
is_like "${PUBLISH_ADDRESS:-}" '([0-9]{1,3}\.){3}[0-9]{1,3}|[0-9a-fA-F:]*:[0-9a-fA-F:]*' ||
  refuse "PUBLISH_ADDRESS must be an IP address, such as 127.0.0.1; 0.0.0.0 is all of the machine's."
is_like "${OBSERVE_MAX_STREAMS:-}" '[0-9]{1,3}|[1-4][0-9]{3}|5000' || refuse "OBSERVE_MAX_STREAMS must be a number from 0 to 5000."
is_like "${NATS_MAX_FILE_STORE:-}" '[1-9][0-9]*(GB|TB)' || refuse "NATS_MAX_FILE_STORE must be a number of GB or TB, such as 20GB."
is_like "${TRUSTED_PROXIES:-}" '([0-9a-fA-F.:]+/[0-9]+(, *|$))*' ||
  refuse "TRUSTED_PROXIES must be CIDR ranges with commas, such as 10.213.89.1/32."
is_like "${LOG_LEVEL:-}" 'trace|debug|info|warn|error|fatal|silent' ||
  refuse "LOG_LEVEL must be trace, debug, info, warn, error, fatal or silent."
is_like "${TERMS_URL:-}" '(https?://.+)?' || refuse "TERMS_URL must be empty or begin with https://."
[ -z "$failed" ]
