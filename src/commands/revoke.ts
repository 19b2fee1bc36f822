/** `revoke`: makes a token worthless, at once on every node. */
import { RedisAdmission } from '../access/redis-admission.ts'
import type { Level } from '../access/tokens.ts'
import type { Config } from '../config.ts'
import { createLogger } from '../platform/logger.ts'
import { RedisClient } from '../platform/redis.ts'
import { StartupError } from '../platform/startup-error.ts'
import { RegistryTables } from '../registry/postgres-registry-tables.ts'
import { revokeToken } from '../registry/sqlite-registry-writes.ts'
import { clusterServers, connectDatabase } from '../storage/cluster.ts'
import { changeDatabase } from '../storage/embedded-database.ts'
import { allowances } from '../storage/storage.ts'

export async function revoke(config: Config, identity: string | undefined): Promise<void> {
  if (identity === undefined)
    throw new StartupError('revoke takes the address of an agent (tab_…) or the id of an operator')
  const level = identity.startsWith('tab_') ? 'agent' : 'operator'
  await (config.cluster
    ? revokeInCluster(config, level, identity)
    : revokeEmbedded(config, level, identity))
}

async function revokeInCluster(config: Config, level: Level, identity: string): Promise<void> {
  const { databaseUrl, redisUrl } = clusterServers(config, 'revoke')
  const database = await connectDatabase(config, databaseUrl)
  try {
    const lookup = await new RegistryTables(database).revoke(level, identity)
    if (!lookup) throw unknown(level, identity)
    await endSessions(config, redisUrl, lookup)
  } finally {
    await database.destroy()
  }
}

/** Without Redis the sessions end by themselves. */
async function endSessions(config: Config, redisUrl: string, lookup: Buffer): Promise<void> {
  try {
    const redis = await RedisClient.open(
      redisUrl,
      config.REDIS_MODE,
      createLogger('silent', 'revoke'),
    )
    await new RedisAdmission(redis, {
      sessionTtlMs: config.SESSION_TTL,
      allowances: allowances(config),
    }).revoke(lookup)
    await redis.close()
    console.log('Revoked: no node accepts the token any more.')
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error)
    console.log(
      `Revoked, but Redis is out (${reason}): nodes may accept the token for another ${config.SESSION_TTL / 1_000} s.`,
    )
  }
}

/** A kernel that runs sees within half a second that another process has written. */
async function revokeEmbedded(config: Config, level: Level, identity: string): Promise<void> {
  const isKnown = await changeDatabase(config, (sqlite) => revokeToken(sqlite, { level, identity }))
  if (!isKnown) throw unknown(level, identity)
  console.log(
    `Revoked the token of ${level} ${identity}: within a second it is not accepted any more.`,
  )
}

function unknown(level: Level, identity: string): StartupError {
  return new StartupError(`there is no ${level} ${identity}`)
}
