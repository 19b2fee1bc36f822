#!/bin/sh
# Prints the Secrets of the small overlay with new random passwords. Once for each cluster: the
# servers keep what they began with.
#   sh k8s/small/make-secrets.sh | kubectl apply --filename -
set -eu

# A letter first: NATS takes what begins with a digit for a number.
password() {
  printf 'p%s' "$(head -c 24 /dev/urandom | od -An -v -tx1 | tr -d ' \n')"
}

owner=$(password)
kernel_database=$(password)
kernel_redis=$(password)
kernel_nats=$(password)
observer_database=$(password)
observer_nats=$(password)
route=$(password)

cat <<SECRETS
apiVersion: v1
kind: Secret
metadata: { name: kernel, namespace: tabulum }
stringData:
  DATABASE_URL: postgres://tabulum:$kernel_database@postgres:5432/tabulum
  REDIS_URL: redis://kernel:$kernel_redis@redis:6379
  NATS_URL: nats://kernel:$kernel_nats@nats-0.nats:4222,nats://kernel:$kernel_nats@nats-1.nats:4222,nats://kernel:$kernel_nats@nats-2.nats:4222
  WEBHOOK_SECRET_KEY: $(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n')
---
apiVersion: v1
kind: Secret
metadata: { name: observe, namespace: tabulum }
stringData:
  DATABASE_URL: postgres://tabulum_observer:$observer_database@postgres:5432/tabulum
  NATS_URL: nats://observer:$observer_nats@nats-0.nats:4222,nats://observer:$observer_nats@nats-1.nats:4222,nats://observer:$observer_nats@nats-2.nats:4222
---
apiVersion: v1
kind: Secret
metadata: { name: migrate, namespace: tabulum }
stringData:
  DATABASE_URL: postgres://tabulum_owner:$owner@postgres:5432/tabulum
---
apiVersion: v1
kind: Secret
metadata: { name: postgres, namespace: tabulum }
stringData:
  POSTGRES_PASSWORD: $(password)
  TABULUM_OWNER_PASSWORD: $owner
  TABULUM_PASSWORD: $kernel_database
  TABULUM_OBSERVER_PASSWORD: $observer_database
---
apiVersion: v1
kind: Secret
metadata: { name: redis, namespace: tabulum }
stringData:
  REDIS_KERNEL_PASSWORD: $kernel_redis
  REDIS_ADMIN_PASSWORD: $(password)
---
apiVersion: v1
kind: Secret
metadata: { name: nats, namespace: tabulum }
stringData:
  NATS_ROUTES: '["nats://route:$route@nats-0.nats:6222", "nats://route:$route@nats-1.nats:6222", "nats://route:$route@nats-2.nats:6222"]'
  NATS_ROUTE_PASSWORD: $route
  NATS_KERNEL_PASSWORD: $kernel_nats
  NATS_ADMIN_PASSWORD: $(password)
  NATS_OBSERVER_PASSWORD: $observer_nats
  NATS_SYSTEM_PASSWORD: $(password)
SECRETS
