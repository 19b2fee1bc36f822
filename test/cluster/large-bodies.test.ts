/**
 * Large bodies, and clients that do not read, at once: a node keeps within its memory, says so, and
 * serves the others.
 */
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { Agent, Client } from '../../lab/client.ts'
import { type Cluster, type Places, startSharedCluster } from '../../lab/cluster.ts'

const MEBIBYTE = 1_048_576
/** Of a container (docker-compose.yml). */
const MEMORY_LIMIT = 512 * MEBIBYTE
/** A machine that is slower to free what was used needs room, too. */
const PEAK = 0.75 * MEMORY_LIMIT
/**
 * As the image has it: V8's heap has a third of the memory and little for what is new, and glibc
 * gives back what buffers took.
 */
const CONTAINER = {
  NODE_OPTIONS: '--max-old-space-size=170 --max-semi-space-size=8',
  MALLOC_ARENA_MAX: '2',
  MALLOC_MMAP_THRESHOLD_: '131072',
  MALLOC_TRIM_THRESHOLD_: '131072',
}
const BODIES = 150
const READERS = 60

let cluster: Cluster<Places>
let agents: Agent[]
beforeAll(async () => {
  const lifted = { RATE_LIMIT_MESSAGE_PER_MIN: '100000', RATE_LIMIT_STATE_WRITE_PER_MIN: '100000' }
  const settings = { ...lifted, RATE_LIMIT_OPERATOR_PER_HOUR_PER_IP: '1000', ...CONTAINER }
  cluster = await startSharedCluster({ nodes: 1, workers: 1, settings })
  const operator = await new Client(cluster.baseUrl).registerOperator()
  agents = await Promise.all(Array.from({ length: 5 }, () => operator.registerAgent()))
})
afterAll(() => cluster?.[Symbol.asyncDispose]())

const node = () => cluster.nodes[0] ?? expect.fail('there is one node')

/**
 * The most memory that the node has ever had for itself, in bytes; the pages of the program itself
 * the system takes back where it must.
 */
function peak(): number {
  const status = readFileSync(`/proc/${node().pid}/status`, 'utf8')
  const kilobytes = (name: string) =>
    Number(new RegExp(`^${name}:\\s+(\\d+) kB$`, 'm').exec(status)?.[1])
  return (kilobytes('VmHWM') - kilobytes('RssFile')) * 1_024
}

async function heldBytes(): Promise<number> {
  const metrics = await (await fetch(`${node().internalUrl}/metrics`)).text()
  return [...metrics.matchAll(/^tabulum_bytes_held\{.*\} (\d+)$/gm)].reduce(
    (sum, [, bytes]) => sum + Number(bytes),
    0,
  )
}

describe.each([
  ['a node', () => node().url],
  ['the load balancer', () => cluster.baseUrl],
])('bodies of 6 MB at once, through %s', (_, url) => {
  it('are served or told to come again, and each client hears it', {
    timeout: 300_000,
  }, async () => {
    const client = new Client(url())
    const body = JSON.stringify({ value: '\0'.repeat(MEBIBYTE) })
    const answers = await Promise.all(
      Array.from({ length: BODIES }, (__, index) => {
        const { address, token } = agents[index % agents.length] as Agent
        const options = {
          headers: { 'Content-Type': 'application/json' },
          body,
          chunked: index % 2 === 0,
        }
        return new Agent(client, address, token).request('PUT', `/v1/state/large/${index}`, options)
      }),
    )
    for (const answer of answers) {
      expect([200, 503], String(answer)).toContain(answer.status)
      if (answer.status === 503) {
        expect(answer.headers['retry-after']).toBe('1')
        expect(answer.json).toEqual({
          error: 'unavailable',
          message: 'the kernel is overloaded; try again',
        })
      }
    }
    expect(answers.filter(({ status }) => status === 200).length).toBeGreaterThan(0)
    expect(answers.filter(({ status }) => status === 503).length).toBeGreaterThan(0)
    expect(peak()).toBeLessThan(PEAK)
    await vi.waitFor(async () => expect(await heldBytes()).toBe(0), {
      timeout: 30_000,
      interval: 100,
    })
    expect(node().process.crashed).toBe(false)
  })
})

it('clients that do not read what they asked for take no memory from the others', {
  timeout: 300_000,
}, async () => {
  const [first, second, other] = agents as [Agent, Agent, Agent]
  await vi.waitFor(
    async () => expect((await first.tryWrite('largest', '\0'.repeat(MEBIBYTE))).status).toBe(200),
    {
      timeout: 60_000,
      interval: 100,
    },
  )
  const { hostname, port } = new URL(node().url)
  const sockets: Socket[] = []
  const statuses = await Promise.all(
    Array.from({ length: READERS }, async (_, reader) => {
      const { token } = reader % 2 === 0 ? first : second
      const socket = connect({ host: hostname, port: Number(port) })
      sockets.push(socket)
      socket.write(
        `GET /v1/state/largest HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer ${token}\r\n\r\n`,
      )
      // The status, and no more than comes with it.
      await once(socket, 'readable')
      return Number((socket.read() as Buffer).subarray(9, 12))
    }),
  )
  expect(new Set(statuses)).toEqual(new Set([200, 503]))
  expect(peak()).toBeLessThan(PEAK)
  expect((await other.read('largest')).value).toHaveLength(MEBIBYTE)
  for (const socket of sockets) socket.destroy()
  await vi.waitFor(async () => expect(await heldBytes()).toBe(0), {
    timeout: 60_000,
    interval: 200,
  })
})
