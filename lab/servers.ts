/**
 * Real servers, run by the configuration in deploy/: each `start…` is a private instance on free
 * ports with its own data, each `shared…` a place of its own on servers that several use. All of it
 * is gone after `await using` or `[Symbol.asyncDispose]()`, and also when the test process is
 * killed.
 */
export {
  type BackendNode,
  type BackendStatus,
  type HaproxyOptions,
  type HaproxyServer,
  haproxyVersion,
  startHaproxy,
} from './servers/haproxy.ts'
export {
  type NatsAccount,
  type NatsCluster,
  type NatsServer,
  natsOptions,
  startNats,
} from './servers/nats.ts'
export { installNc } from './servers/nc.ts'
export { type PgBouncer, startPgBouncer } from './servers/pgbouncer.ts'
export { type PostgresDatabase, type PostgresServer, startPostgres } from './servers/postgres.ts'
export { Process, pidsIn } from './servers/process.ts'
export {
  type RedisDatabase,
  type RedisOptions,
  type RedisServer,
  redisAdmin,
  startRedis,
} from './servers/redis.ts'
export { type RedisCluster, startRedisCluster } from './servers/redis-cluster.ts'
export { sharedNats, sharedPostgres, sharedRedis } from './servers/shared.ts'
