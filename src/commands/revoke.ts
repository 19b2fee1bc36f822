/** `revoke`: makes a token worthless, at once on every node. */

import { RedisAdmission } from '../access/redis-admission.ts'
import type { Config } from '../config.ts'
import { createLogger } from '../platform/logger.ts'
import { RedisClient } from '../platform/redis.ts'
import { StartupError } from '../platform/startup-error.ts'
import { RegistryStore } from '../registry/registry-store.ts'
import { clusterServers, connectDatabase } from './cluster.ts'
import { allowances } from './node.ts'
import { openForReading } from './verify.ts'

export async function revoke(config: Config, identity: string | undefined): Promise<void> {
  if (identity === undefined)
    throw new StartupError('revoke takes the address of an agent (tab_…) or the id of an operator')
  const level = identity.startsWith('tab_') ? 'agent' : 'operator'
  const { database, close } = config.cluster ? await openDatabase(config) : await openForReading(config)
  try {
    const lookup = await new RegistryStore(database).revoke(level, identity)
    if (!lookup) throw new StartupError(`there is no ${level} ${identity}`)
    if (config.cluster) await endSessions(config, lookup)
    else console.log(`Revoked the token of ${level} ${identity}.`)
  } finally {
    await close()
  }
}

async function openDatabase(config: Config) {
  const database = await connectDatabase(config, clusterServers(config, 'revoke').databaseUrl)
  return { database, close: () => database.destroy() }
}

/** Without Redis the sessions end by themselves. */
async function endSessions(config: Config, lookup: Buffer): Promise<void> {
  const { redisUrl } = clusterServers(config, 'revoke')
  try {
    const redis = await RedisClient.open(redisUrl, config.REDIS_MODE, createLogger('silent', 'revoke'))
    await new RedisAdmission(redis, { sessionTtlMs: config.SESSION_TTL, allowances: allowances(config) }).revoke(lookup)
    await redis.close()
    console.log('Revoked: no node accepts the token any more.')
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error)
    console.log(
      `Revoked, but Redis is out (${reason}): nodes may accept the token for another ${config.SESSION_TTL / 1_000} s.`,
    )
  }
}
