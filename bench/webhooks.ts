/**
 * One worker pushing to HTTPS receivers on loopback: how many messages a second it delivers when a
 * backlog waits for it, and how soon a message arrives under a steady load; all endpoints healthy,
 * and with one in ten a black hole that accepts and never answers. Two clusters, one without black
 * holes and one with, take turns, so that both meet the same moods of the machine; what counts is
 * the ratio. Everything shares the machine's processors: servers, API node, worker, receivers and
 * sender.
 *
 * An endpoint is found to be a black hole when its first time-out is over. The beginning, when
 * nothing is known of any, is measured apart; circuits stay closed throughout, as five messages to
 * the same black hole take minutes to fail. The median over all turns counts.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { type Agent, Client, message } from '../lab/client.ts'
import { type Cluster, startCluster } from '../lab/cluster.ts'
import { createTestAuthority, startReceiver, type TestAuthority } from '../lab/receiver.ts'
import { cpuTimes } from './load.ts'

const HEALTHY = 450
const BLACK_HOLES = 50
/** Of one operator, for the first push to an agent of another. */
const NEW_BLACK_HOLES = 1_000
const REGISTRATIONS_AT_ONCE = 8
/** To each agent, for the throughput. */
const BACKLOG = 12
/** Messages a second to healthy endpoints, for the latency; black holes get their share on top. */
const STEADY_RATE = 100
const FIRST_SECONDS = 10
const TURN_SECONDS = 5
const SENDERS = 32
const ROUNDS = 3
/** Of measuring latencies, in each round. */
const TURNS = 4
/** After a start or a backlog, until what is left to do in the background is done. */
const SETTLE_MS = 1_000

interface Figures {
  /** Messages a second that reached healthy endpoints, from the first to the last of a backlog. */
  'deliveries/s': number
  /** Of the worker, a delivery of that backlog. */
  'CPU ms worker': number
  /** From sending to arrival at healthy endpoints. */
  'p50 ms': number
  'p99 ms': number
}
type Latency = Pick<Figures, 'p50 ms' | 'p99 ms'>

/**
 * `kept`: what is left of the throughput and the latency of healthy endpoints where one in ten is a
 * black hole; 1 is all.
 */
export interface WebhookReport {
  newcomer: NewcomerReport
  'first 10 s': Record<'without' | 'with', Latency>
  'from then on': Record<'without' | 'with' | 'kept', Figures>
}

export async function benchWebhooks(): Promise<WebhookReport> {
  const newcomer = await benchNewcomer()
  await using authority = await createTestAuthority()
  await using without = await Bench.start(authority, { healthy: HEALTHY, blackHoles: 0 })
  await using withHoles = await Bench.start(authority, {
    healthy: HEALTHY,
    blackHoles: BLACK_HOLES,
  })
  const first = {
    without: await without.latency(FIRST_SECONDS),
    with: await withHoles.latency(FIRST_SECONDS),
  }
  await withHoles.untilHolesAreKnown()

  const both = [
    { bench: without, backlogs: [] as Drained[], latencies: [] as Latency[] },
    { bench: withHoles, backlogs: [] as Drained[], latencies: [] as Latency[] },
  ] as const
  const inTurn = (turn: number) => (turn % 2 === 0 ? both : both.toReversed())
  for (let round = 0; round < ROUNDS; round++) {
    for (const { bench, backlogs } of inTurn(round)) backlogs.push(await bench.drainBacklog())
    await sleep(SETTLE_MS)
    for (let turn = 0; turn < TURNS; turn++) {
      for (const { bench, latencies } of inTurn(turn))
        latencies.push(await bench.latency(TURN_SECONDS))
    }
  }
  const [plain, holed] = both.map(
    ({ backlogs, latencies }): Figures => ({
      'deliveries/s': median(backlogs.map(({ perSecond }) => perSecond)),
      'CPU ms worker': median(backlogs.map(({ cpuMs }) => cpuMs)),
      'p50 ms': median(latencies.map((latency) => latency['p50 ms'])),
      'p99 ms': median(latencies.map((latency) => latency['p99 ms'])),
    }),
  ) as [Figures, Figures]
  const report: WebhookReport = {
    newcomer,
    'first 10 s': first,
    'from then on': {
      without: plain,
      with: holed,
      kept: {
        'deliveries/s': rounded(holed['deliveries/s'] / plain['deliveries/s']),
        'CPU ms worker': rounded(plain['CPU ms worker'] / holed['CPU ms worker']),
        'p50 ms': rounded(plain['p50 ms'] / holed['p50 ms']),
        'p99 ms': rounded(plain['p99 ms'] / holed['p99 ms']),
      },
    },
  }
  console.log(
    `\nwebhooks: 1 worker, ${HEALTHY} healthy endpoints, without and with ${BLACK_HOLES} black holes beside them; deliveries/s from a backlog, latency at ${STEADY_RATE} messages/s`,
  )
  for (const [when, figures] of Object.entries({ ...report, newcomer: undefined })) {
    if (figures === undefined) continue
    console.log(when)
    console.table(figures)
  }
  return report
}

interface NewcomerReport {
  /** Until the first push to a new agent arrives, alone. */
  'alone, ms': number
  /** And beside the black holes of another operator, none of which has been tried yet. */
  'beside the black holes of another, ms': number
}

/** What black holes of one operator cost the first push to an agent of another. */
export async function benchNewcomer(): Promise<NewcomerReport> {
  await using authority = await createTestAuthority()
  await using bench = await Bench.start(authority, { healthy: 2, blackHoles: NEW_BLACK_HOLES })
  const alone = await bench.firstPush(0)
  await bench.sendToHoles()
  const report = {
    'alone, ms': rounded(alone),
    'beside the black holes of another, ms': rounded(await bench.firstPush(1)),
  }
  console.log(
    `\nwebhooks: the first push to an agent, beside ${NEW_BLACK_HOLES} new black holes of another operator`,
  )
  console.table(report)
  return report
}

interface Drained {
  perSecond: number
  cpuMs: number
}

/** A cluster with its agents and their receivers. */
class Bench {
  readonly #stack: AsyncDisposableStack
  readonly #cluster: Cluster
  readonly #sender: Agent
  readonly #healthy: readonly Agent[]
  readonly #holes: readonly Agent[]
  readonly #arrivals: Arrivals

  static async start(
    authority: TestAuthority,
    { healthy: healthyCount, blackHoles }: { healthy: number; blackHoles: number },
  ): Promise<Bench> {
    await using stack = new AsyncDisposableStack()
    const cluster = stack.use(
      await startCluster({
        nodes: 1,
        workers: 1,
        settings: {
          RATE_LIMIT_MESSAGE_PER_MIN: '1000000',
          RATE_LIMIT_OPERATOR_PER_HOUR_PER_IP: '1000000',
          RATE_LIMIT_WEBHOOK_PER_MIN: '1000000',
          BCRYPT_COST: '4',
          WEBHOOK_ALLOW_CIDRS: '127.0.0.0/8',
          WEBHOOK_CA_FILE: authority.caFile,
        },
      }),
    )
    const arrivals = new Arrivals()
    const receiver = stack.use(
      await startReceiver({
        authority,
        behaviour: ({ body }) => {
          arrivals.add(message.parse(JSON.parse(body.toString())).content)
          return { status: 200 }
        },
      }),
    )
    const hole = stack.use(await startReceiver({ authority, behaviour: 'black_hole' }))
    const client = new Client(cluster.baseUrl)
    const sender = await client.registerAgent()
    const register = async (count: number, url: string) => {
      const operator = await client.registerOperator()
      return eachOf(
        REGISTRATIONS_AT_ONCE,
        Array.from(
          { length: count },
          (_, index) => () => operator.registerAgent(`${url}/${index}`),
        ),
      )
    }
    const healthy = await register(healthyCount, receiver.url)
    const holes = await register(blackHoles, hole.url)
    return new Bench(stack.move(), cluster, sender, healthy, holes, arrivals)
  }

  private constructor(
    stack: AsyncDisposableStack,
    cluster: Cluster,
    sender: Agent,
    healthy: readonly Agent[],
    holes: readonly Agent[],
    arrivals: Arrivals,
  ) {
    this.#stack = stack
    this.#cluster = cluster
    this.#sender = sender
    this.#healthy = healthy
    this.#holes = holes
    this.#arrivals = arrivals
  }

  /** One message to each black hole, all of which are accepted when this returns. */
  async sendToHoles(): Promise<void> {
    await eachOf(
      SENDERS,
      this.#holes.map((hole) => () => this.#sender.send(hole.address, 'lost')),
    )
  }

  /** In ms, from sending the first message to a healthy agent until it arrives. */
  async firstPush(index: number): Promise<number> {
    const arrivals = this.#arrivals.expect(1)
    const sentAt = performance.now()
    await this.#sender.send((this.#healthy[index] as Agent).address, 'first')
    const [first] = await arrivals
    return (first?.[1] ?? Number.NaN) - sentAt
  }

  /** Until each black hole has had its first time-out. */
  async untilHolesAreKnown(): Promise<void> {
    const pattern = /^tabulum_webhook_attempts_total\{outcome="timeout"\} (\d+)$/m
    for (;;) {
      const metrics = await (await fetch(`${this.#worker.internalUrl}/metrics`)).text()
      if (Number(pattern.exec(metrics)?.[1] ?? 0) >= this.#holes.length) return
      await sleep(SETTLE_MS)
    }
  }

  /** What was accepted while no worker ran. */
  async drainBacklog(): Promise<Drained> {
    const stopped = this.#worker.stop()
    const arrivals = this.#arrivals.expect(HEALTHY * BACKLOG)
    const recipients = mixed(this.#healthy, this.#holes)
    const sends = Array.from({ length: BACKLOG }, (_, index) =>
      recipients.map((agent) => () => this.#sender.send(agent.address, `backlog ${index}`)),
    ).flat()
    // A worker that stops claims nothing any more, but finishes what it has begun: with a black
    // hole, its time-out.
    await sleep(SETTLE_MS)
    await eachOf(SENDERS, sends)
    await stopped
    await this.#worker.restart()
    const pids = { worker: () => [this.#worker.pid] }
    const cpuBefore = cpuTimes(pids).worker ?? 0
    const times = (await arrivals).map(([, at]) => at)
    const cpuMs = (cpuTimes(pids).worker ?? 0) - cpuBefore
    const seconds = (Math.max(...times) - Math.min(...times)) / 1_000
    return { perSecond: times.length / seconds, cpuMs: cpuMs / times.length }
  }

  /** In ms, of messages to healthy endpoints that are sent at a steady rate. */
  async latency(seconds: number): Promise<Latency> {
    const total = STEADY_RATE * seconds
    const arrivals = this.#arrivals.expect(total)
    const sentAt = new Map<string, number>()
    const sending: Promise<unknown>[] = []
    const holeEvery = Math.round(HEALTHY / Math.max(1, this.#holes.length))
    const startedAt = performance.now()
    for (let index = 0; index < total; index++) {
      await sleep(Math.max(0, startedAt + (1_000 * index) / STEADY_RATE - performance.now()))
      const content = `steady ${index}`
      const hole = this.#holes[(index / holeEvery) % this.#holes.length]
      if (hole !== undefined) sending.push(this.#sender.send(hole.address, 'lost'))
      sentAt.set(content, performance.now())
      sending.push(this.#sender.send((this.#healthy[index % HEALTHY] as Agent).address, content))
    }
    await Promise.all(sending)
    return percentiles(
      (await arrivals).map(([content, at]) => at - (sentAt.get(content) ?? Number.NaN)),
    )
  }

  get #worker() {
    const [worker] = this.#cluster.workers
    if (worker === undefined) throw new Error('a worker was asked for')
    return worker
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#stack.disposeAsync()
  }
}

/** What comes in, and when, by `performance.now()`. */
class Arrivals {
  #all: [content: string, at: number][] = []
  #expected = Number.POSITIVE_INFINITY
  #resolve: (all: [string, number][]) => void = () => {}

  add(content: string): void {
    this.#all.push([content, performance.now()])
    if (this.#all.length === this.#expected) this.#resolve(this.#all)
  }

  /** The next so many; the count starts now. */
  expect(count: number): Promise<readonly (readonly [content: string, at: number])[]> {
    this.#all = []
    this.#expected = count
    const { promise, resolve } = Promise.withResolvers<[string, number][]>()
    this.#resolve = resolve
    return promise
  }
}

function percentiles(latencies: readonly number[]): Latency {
  const sorted = latencies.toSorted((one, other) => one - other)
  const at = (share: number) => rounded(sorted[Math.floor(sorted.length * share)] ?? Number.NaN)
  return { 'p50 ms': at(0.5), 'p99 ms': at(0.99) }
}

function median(values: readonly number[]): number {
  const sorted = values.toSorted((one, other) => one - other)
  const middle = (sorted.length - 1) / 2
  return rounded(((sorted[Math.floor(middle)] ?? 0) + (sorted[Math.ceil(middle)] ?? 0)) / 2)
}

function rounded(value: number): number {
  return Number(value.toPrecision(3))
}

/** The one among the other, evenly. */
function mixed<T>(many: readonly T[], few: readonly T[]): T[] {
  const every = Math.ceil(many.length / Math.max(1, few.length))
  return many.flatMap((item, index) => {
    const other = few[index / every]
    return other === undefined ? [item] : [other, item]
  })
}

/** Runs them all, so many at a time; their results in their order. */
async function eachOf<T>(limit: number, tasks: readonly (() => Promise<T>)[]): Promise<T[]> {
  const results: T[] = []
  const left = tasks.entries()
  await Promise.all(
    Array.from({ length: limit }, async () => {
      for (const [index, task] of left) results[index] = await task()
    }),
  )
  return results
}
