/**
 * A Postgres that lets nobody in quickly: what takes long is waited for, and not begun anew before
 * it can end.
 */
import { once } from 'node:events'
import { type AddressInfo, connect, createServer } from 'node:net'
import { sql } from 'kysely'
import { expect, it, vi } from 'vitest'
import { sharedPostgres } from '../../lab/servers.ts'
import { openPostgres, roundTrip } from '../../src/platform/database.ts'

/** Longer than connecting may take at first. */
const HELD_MS = 2_700

it('is reached although connecting takes longer than it may at first, however many ask meanwhile', {
  timeout: 120_000,
}, async () => {
  await using server = await sharedPostgres()
  // Each connection stands still for a while, and is as quick as any then.
  const door = createServer((client) => {
    const inner = connect(server.port, server.host)
    const timer = setTimeout(() => client.pipe(inner), HELD_MS)
    inner.pipe(client)
    for (const [one, other] of [
      [client, inner],
      [inner, client],
    ] as const) {
      one.on('error', () => other.destroy())
      one.on('close', () => {
        clearTimeout(timer)
        other.destroy()
      })
    }
  })
  await once(door.listen(0, '127.0.0.1'), 'listening')
  const url = new URL(server.appUrl)
  url.port = String((door.address() as AddressInfo).port)
  const database = openPostgres({ url: url.href, poolMode: 'session', maxConnections: 2 })
  try {
    // Each failure asks for new connections.
    const ask = () => roundTrip(database, 'test', () => sql`select 1`.execute(database))
    const answered = await vi.waitFor(() => Promise.any([ask(), ask()]), {
      timeout: 60_000,
      interval: 100,
    })
    expect(answered.rows).toHaveLength(1)
  } finally {
    await database.destroy()
    door.close()
  }
})
