#!/bin/sh
# Prints the settings of docker-compose.yml with new random passwords:
#   sh deploy/compose/make-environment.sh > .env
set -eu
umask 077

# A letter first: NATS takes what begins with a digit for a number.
password() {
  printf 'p%s' "$(head -c 24 /dev/urandom | od -An -v -tx1 | tr -d ' \n')"
}

echo ENVIRONMENT=production
echo PUBLISH_ADDRESS=127.0.0.1
echo PUBLISH_PORT=8080
for name in POSTGRES_PASSWORD TABULUM_OWNER_PASSWORD TABULUM_PASSWORD REDIS_KERNEL_PASSWORD REDIS_ADMIN_PASSWORD \
  NATS_ROUTE_PASSWORD NATS_KERNEL_PASSWORD NATS_ADMIN_PASSWORD NATS_OBSERVER_PASSWORD NATS_SYSTEM_PASSWORD; do
  echo "$name=$(password)"
done
echo "WEBHOOK_SECRET_KEY=$(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n')"
