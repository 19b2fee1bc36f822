/**
 * A closed loop of requests against one server: so many connections, each asking again as soon as
 * it is answered.
 */
import { readFileSync } from 'node:fs'
import { Pool } from 'undici'
import type { Cluster } from '../lab/cluster.ts'

/**
 * Connections, and so requests under way. More than one process has threads for, few enough that
 * latency is not all queueing.
 */
export const CONNECTIONS = 32
const DEADLINE_MS = 30_000
/** Of Linux, in which /proc counts CPU time; 100 on every platform that Node runs on. */
const TICKS_PER_S = 100

/**
 * Processes whose CPU time is counted, by what to call them together. A function where they come
 * and go.
 */
export type Pids = Readonly<Record<string, () => readonly number[]>>

export interface Ask {
  method: 'GET' | 'POST' | 'PUT' | 'DELETE'
  path: string
  token?: string
  json?: unknown
  /** Beside those that follow from the rest. */
  headers?: Readonly<Record<string, string>>
}

/** What one stretch of load has shown. */
export interface Stretch {
  seconds: number
  /** Of each request, in ms, in the order of the answers. */
  latencies: number[]
  /** Answers other than 2xx: more than 0 means that the figures are of something else. */
  failed: number
  /** CPU milliseconds of each process. */
  cpuMs: Record<string, number>
}

export interface Figures {
  requests: number
  failed: number
  perSecond: number
  p50Ms: number
  p99Ms: number
  /** CPU milliseconds of each process a request. */
  cpuMsPerRequest: Record<string, number>
}

/**
 * Sends what `next` gives, for so many seconds after a warm-up, or until it gives undefined, and
 * waits for the answers, which count as well. `next` is called with the number of the request, from
 * 0. `pids` names the processes whose CPU time is counted.
 */
export async function load(
  baseUrl: string,
  { seconds, warmUpSeconds }: { seconds: number; warmUpSeconds: number },
  next: (index: number) => Ask | undefined,
  pids: Pids = {},
): Promise<Stretch> {
  const pool = new Pool(baseUrl, {
    connections: CONNECTIONS,
    headersTimeout: DEADLINE_MS,
    bodyTimeout: DEADLINE_MS,
  })
  const latencies: number[] = []
  let failed = 0
  let index = 0
  let warmUntil = performance.now() + warmUpSeconds * 1_000
  let cpuBefore = cpuTimes(pids)
  let begin = performance.now()
  let warm = warmUpSeconds > 0
  const end = warmUntil + seconds * 1_000
  const loop = async () => {
    while (performance.now() < end) {
      const ask = next(index++)
      if (ask === undefined) return
      const sent = performance.now()
      const { statusCode, body } = await pool.request({
        method: ask.method,
        path: ask.path,
        headers: {
          ...(ask.token === undefined ? {} : { authorization: `Bearer ${ask.token}` }),
          ...(ask.json === undefined ? {} : { 'content-type': 'application/json' }),
          ...ask.headers,
        },
        body: ask.json === undefined ? null : JSON.stringify(ask.json),
      })
      await body.dump()
      const now = performance.now()
      if (warm && now >= warmUntil) {
        warm = false
        warmUntil = now
        begin = now
        cpuBefore = cpuTimes(pids)
        latencies.length = 0
        failed = 0
        continue
      }
      if (statusCode >= 300) failed++
      latencies.push(now - sent)
    }
  }
  await Promise.all(Array.from({ length: CONNECTIONS }, loop))
  const elapsed = performance.now() - begin
  const cpuAfter = cpuTimes(pids)
  await pool.close()
  const cpuMs = Object.fromEntries(
    Object.entries(cpuAfter).map(([name, after]) => [name, after - (cpuBefore[name] ?? 0)]),
  )
  return { seconds: elapsed / 1_000, latencies, failed, cpuMs }
}

/** Of stretches of the same load, together. */
export function figuresOf(stretches: readonly Stretch[]): Figures {
  const latencies = stretches
    .flatMap((stretch) => stretch.latencies)
    .sort((one, other) => one - other)
  const at = (share: number) =>
    latencies[Math.min(latencies.length - 1, Math.floor(latencies.length * share))] ?? 0
  const sum = (value: (stretch: Stretch) => number) =>
    stretches.reduce((total, stretch) => total + value(stretch), 0)
  return {
    requests: latencies.length,
    failed: sum(({ failed }) => failed),
    perSecond: latencies.length / sum(({ seconds }) => seconds),
    p50Ms: at(0.5),
    p99Ms: at(0.99),
    cpuMsPerRequest: Object.fromEntries(
      Object.keys(stretches[0]?.cpuMs ?? {}).map((name) => [
        name,
        sum(({ cpuMs }) => cpuMs[name] ?? 0) / Math.max(1, latencies.length),
      ]),
    ),
  }
}

/** The servers of a cluster. */
export function serverPids({ postgres, redis, nats }: Cluster): Pids {
  return {
    postgres: () => postgres.process.pids(),
    redis: () => redis.process.pids(),
    nats: () => nats.servers.flatMap((server) => server.process.pids()),
  }
}

/** NaN where there are no values. */
export function median(values: readonly number[]): number {
  return values.toSorted((one, other) => one - other)[Math.floor(values.length / 2)] ?? Number.NaN
}

/** CPU milliseconds that each process has used, user and system. */
export function cpuTimes(pids: Pids): Record<string, number> {
  return Object.fromEntries(
    Object.entries(pids).map(([name, members]) => [
      name,
      members().reduce((sum, pid) => sum + cpuTime(pid), 0),
    ]),
  )
}

function cpuTime(pid: number): number {
  // The name of the program, in brackets, may hold blanks; the fields that follow do not. See
  // proc_pid_stat(5).
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ').at(-1)?.split(' ') ?? []
  return ((Number(fields[11]) + Number(fields[12])) * 1_000) / TICKS_PER_S
}
