/**
 * One worker of a cluster on this machine, pushing to HTTPS receivers on loopback: how many messages a second it delivers when a backlog
 * waits for it, and how soon a message arrives under a steady load; all endpoints healthy, and with one in ten a black hole that accepts
 * and never answers. Everything shares the machine's processors: servers, API node, worker, receivers and sender.
 */
import { availableParallelism } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Agent, Client, message } from '../test/support/client.ts'
import { type Cluster, startCluster } from '../test/support/cluster.ts'
import { createTestAuthority, type Receiver, startReceiver, type TestAuthority } from '../test/support/receiver.ts'

const HEALTHY = 180
const BLACK_HOLES = 20
/** To each agent, for the throughput. */
const BACKLOG = 30
/** Messages a second, for the latency; to all agents in turn. */
const STEADY_RATE = 100
const STEADY_SECONDS = 15
const SENDERS = 32

interface Measured {
  /** Messages a second that reached healthy endpoints. */
  throughput: number
  /** From acceptance to arrival at healthy endpoints, in ms. */
  p50: number
  p99: number
}

export async function benchWebhooks(): Promise<void> {
  await using authority = await createTestAuthority()
  console.log(
    `webhooks: 1 worker, ${HEALTHY} healthy endpoints, ${BLACK_HOLES} more as black holes, ${availableParallelism()} processors`,
  )
  const without = await measure(authority, 0)
  report('all healthy', without)
  const withHoles = await measure(authority, BLACK_HOLES)
  report(`with ${BLACK_HOLES} black holes`, withHoles)
  const percent = (part: number, whole: number) => `${Math.round((100 * part) / whole)}%`
  console.log(
    `  healthy endpoints keep ${percent(withHoles.throughput, without.throughput)} of their throughput; their latency is ${percent(withHoles.p50, without.p50)} (median), ${percent(withHoles.p99, without.p99)} (99th percentile) of what it was`,
  )
}

function report(name: string, { throughput, p50, p99 }: Measured): void {
  console.log(
    `  ${name}: ${Math.round(throughput)} deliveries/s from a backlog; at ${STEADY_RATE} messages/s they arrive after ${p50} ms (median), ${p99} ms (99th percentile)`,
  )
}

async function measure(authority: TestAuthority, blackHoles: number): Promise<Measured> {
  await using cluster = await startCluster({
    nodes: 1,
    workers: 1,
    settings: {
      RATE_LIMIT_MESSAGE_PER_MIN: '1000000',
      RATE_LIMIT_OPERATOR_PER_HOUR_PER_IP: '1000000',
      RATE_LIMIT_WEBHOOK_PER_MIN: '1000000',
      WEBHOOK_ALLOW_CIDRS: '127.0.0.0/8',
      WEBHOOK_CA_FILE: authority.caFile,
    },
  })
  await using receiver = await startReceiver({ authority })
  await using hole = await startReceiver({ authority, behaviour: 'black_hole' })
  const client = new Client(cluster.baseUrl)
  const sender = await client.registerAgent()
  const register = (count: number, url: string) =>
    Array.fromAsync({ length: count }, (_, index) => client.registerAgent({ webhookUrl: `${url}/${index}` }))
  const healthy = await register(HEALTHY, receiver.url)
  const recipients = mixed(healthy, await register(blackHoles, hole.url))

  const throughput = await drainBacklog(cluster, sender, recipients, receiver)
  const { p50, p99 } = await steadyLoad(sender, recipients, healthy, receiver)
  return { throughput, p50, p99 }
}

/** What was accepted while no worker ran, from the first arrival to the last. */
async function drainBacklog(
  cluster: Cluster,
  sender: Agent,
  recipients: readonly Agent[],
  receiver: Receiver,
): Promise<number> {
  await Promise.all(cluster.workers.map((worker) => worker.stop()))
  const sends = Array.from({ length: BACKLOG }, (_, index) =>
    recipients.map((agent) => () => sender.send(agent.address, `backlog ${index}`)),
  ).flat()
  await eachOf(SENDERS, sends)
  await Promise.all(cluster.workers.map((worker) => worker.restart()))
  await receiver.received(HEALTHY * BACKLOG)
  const times = receiver.deliveries.map(({ receivedAt }) => receivedAt)
  return (1_000 * times.length) / (Math.max(...times) - Math.min(...times))
}

async function steadyLoad(sender: Agent, recipients: readonly Agent[], healthy: readonly Agent[], receiver: Receiver) {
  const before = receiver.deliveries.length
  const counted = new Set(healthy)
  let expected = before
  const sending: Promise<unknown>[] = []
  const total = STEADY_RATE * STEADY_SECONDS
  const startedAt = performance.now()
  for (let index = 0; index < total; index++) {
    await sleep(Math.max(0, startedAt + (1_000 * index) / STEADY_RATE - performance.now()))
    const to = recipients[index % recipients.length] as Agent
    if (counted.has(to)) expected++
    sending.push(sender.send(to.address, `steady ${index}`))
  }
  await Promise.all(sending)
  await receiver.received(expected)
  const latencies = receiver.deliveries
    .slice(before)
    .map(({ body, receivedAt }) => receivedAt - Date.parse(message.parse(JSON.parse(body.toString())).timestamp))
    .toSorted((one, other) => one - other)
  const at = (share: number) => latencies[Math.floor(latencies.length * share)] ?? Number.NaN
  return { p50: at(0.5), p99: at(0.99) }
}

/** The one among the other, evenly. */
function mixed<T>(many: readonly T[], few: readonly T[]): T[] {
  const every = Math.ceil(many.length / Math.max(1, few.length))
  return many.flatMap((item, index) => {
    const other = few[index / every]
    return other === undefined ? [item] : [other, item]
  })
}

/** Runs them all, so many at a time. */
async function eachOf(limit: number, tasks: readonly (() => Promise<unknown>)[]): Promise<void> {
  const left = tasks.values()
  await Promise.all(
    Array.from({ length: limit }, async () => {
      for (const task of left) await task()
    }),
  )
}
