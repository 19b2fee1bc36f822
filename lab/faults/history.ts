/**
 * What a run of the faults program keeps: everything that agents asked and were told, everything
 * that was broken, and how it all ended.
 */
import type { Event } from '../kernel.ts'

/** A request and its answer. Times are in ms on one clock that never goes back, the client's. */
interface Asked {
  /** Address of the agent that asked. */
  readonly agent: string
  readonly began: number
  readonly ended: number
  /** 0 where no answer came: the connection broke, or the client gave up. */
  readonly status: number
  /** Of the header `Retry-After`. */
  readonly retryAfter?: string | undefined
}

export interface Send extends Asked {
  readonly kind: 'send'
  readonly to: string
  /** Of this message alone; tries under one idempotency key share it. */
  readonly content: string
  /** Of an answer 202. */
  readonly messageId?: string | undefined
}

export interface Receive extends Asked {
  readonly kind: 'receive'
  readonly messages: readonly ReceivedMessage[]
}

export interface ReceivedMessage {
  readonly id: string
  readonly from: string
  readonly to: string
  readonly content: string
}

export interface Write extends Asked {
  readonly kind: 'write'
  readonly key: string
  /** Of this write alone. */
  readonly value: string
}

export interface Read extends Asked {
  readonly kind: 'read'
  readonly key: string
  /** Undefined where there was none. */
  readonly value?: string | undefined
}

export interface Remove extends Asked {
  readonly kind: 'remove'
  readonly key: string
  /** `deleted_at` of an answer 200, which is the time of its event. */
  readonly deletedAt?: string | undefined
}

export interface Capacity extends Asked {
  readonly kind: 'capacity'
  readonly usedBytes: number
}

/** A request that draws on the one limit that is not lifted. */
export interface Limited extends Asked {
  readonly kind: 'limited'
}

/** Here `agent` is the operator. */
export interface Register extends Asked {
  readonly kind: 'register'
  readonly address?: string | undefined
}

export type Operation = Send | Receive | Write | Read | Remove | Capacity | Limited | Register

/** What came to an agent's webhook, in the order of arrival. */
export interface Push extends ReceivedMessage {
  readonly at: number
}

/** Somebody who watched the live stream of the observation, over as many connections as it took. */
export interface Watch {
  readonly name: string
  /** It asked for what comes after this place. */
  readonly since: number
  /** It asked for these types alone; for all unless given. */
  readonly types?: readonly string[] | undefined
  /** What came, up to the end of `events`, in the order in which it came. */
  readonly seen: readonly Event[]
  readonly connections: number
}

/** What one observer answers at the end. */
export interface ObserverView {
  readonly observer: string
  readonly agents: number
  /** As its activity counts them. */
  readonly events: number
}

/**
 * Parts of the cluster. `network`: between a node, worker or observer and the servers. `machine`:
 * all of it stood still, as others used the processors.
 */
export type Part =
  | 'api'
  | 'worker'
  | 'observer'
  | 'haproxy'
  | 'redis'
  | 'postgres'
  | 'nats'
  | 'network'
  | 'clock'
  | 'machine'

export interface FaultRecord {
  readonly name: string
  readonly hits: readonly Part[]
  readonly began: number
  /** When the part itself was whole again. */
  readonly repaired: number
  /**
   * How often that was seen which shows that it really happened, where a fault says what that is.
   */
  readonly seen?: number
}

/** A node, worker or observer that ended though nobody had ended it. */
export interface Crash {
  readonly name: string
  readonly at: number
  /** The last that it printed. */
  readonly output: string
}

/** What one node answers at the end. */
export interface NodeView {
  readonly node: string
  readonly state: Readonly<Record<string, string>>
  readonly usedBytes: number
  readonly keyCount: number
  readonly agents: number
}

export interface History {
  readonly operations: readonly Operation[]
  readonly pushes: readonly Push[]
  readonly faults: readonly FaultRecord[]
  readonly crashes: readonly Crash[]
  /** The whole event log. */
  readonly events: readonly Event[]
  readonly capacityBytes: number
  /** The limit of `limited` requests: a bucket of so many, refilled in a minute. */
  readonly limitPerMinute: number
  /** When everything had settled. */
  readonly nodes: readonly NodeView[]
  readonly observers: readonly ObserverView[]
  readonly watches: readonly Watch[]
  /** What `verify` printed where it found differences. */
  readonly differences?: string | undefined
  /** Agents whose tokens were refused at the end. */
  readonly refusedTokens: readonly string[]
}
