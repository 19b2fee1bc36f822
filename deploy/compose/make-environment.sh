#!/bin/sh
# Writes the settings of docker-compose.yml with new random passwords to a new file that only its
# owner can read:
#   sh deploy/compose/make-environment.sh [file, by default .env]
# Refuses to overwrite one, as the servers keep the passwords that they began with.
set -eu
file=${1:-.env}
if [ -e "$file" ] || [ -L "$file" ]; then
  echo "$file is there already, and the servers may have its passwords. Move it away first." >&2
  exit 1
fi
# With -C the shell creates it or fails.
umask 077
set -C
exec > "$file"

# A letter first: NATS takes what begins with a digit for a number.
password() {
  printf 'p%s' "$(head -c 24 /dev/urandom | od -An -v -tx1 | tr -d ' \n')"
}

echo ENVIRONMENT=production
echo PUBLISH_ADDRESS=127.0.0.1
echo PUBLISH_PORT=8080
echo OBSERVE_PORT=8090
echo PROMETHEUS_PORT=9091
echo API_REPLICAS=3
echo WORKER_REPLICAS=2
echo OBSERVE_REPLICAS=2
echo OBSERVE_MAX_STREAMS=100
echo NATS_MAX_FILE_STORE=20GB
echo TERMS_URL=
echo LOG_LEVEL=info
echo ENTRY_SUBNET=10.213.88.0/24
echo OBSERVERS_SUBNET=10.213.87.0/24
echo PUBLISHED_SUBNET=10.213.89.0/24
echo OUTBOUND_SUBNET=10.213.90.0/24
echo TRUSTED_PROXIES=
for name in POSTGRES_PASSWORD TABULUM_OWNER_PASSWORD TABULUM_PASSWORD TABULUM_OBSERVER_PASSWORD REDIS_KERNEL_PASSWORD \
  REDIS_ADMIN_PASSWORD NATS_ROUTE_PASSWORD NATS_KERNEL_PASSWORD NATS_ADMIN_PASSWORD NATS_OBSERVER_PASSWORD NATS_SYSTEM_PASSWORD; do
  echo "$name=$(password)"
done
echo "WEBHOOK_SECRET_KEY=$(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n')"
echo "wrote $file; docs/deploying.md says what to set in it" >&2
