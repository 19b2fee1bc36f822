/** Answers of the observation API, and in words why there is none. */
import {
  type ReadonlySignal,
  type Signal,
  signal,
  useSignal,
  useSignalEffect,
} from '@preact/signals'
import { useEffect } from 'preact/hooks'
import type { z } from 'zod'
import type * as schemas from '../schemas.ts'

/** `cut`: some text in it is only a beginning. */
export type LogEvent = z.infer<typeof schemas.event> & { cut?: true }
export type EventsPage = z.infer<typeof schemas.eventsBody>
export type StatePage = z.infer<typeof schemas.stateListBody>
export type StateValue = z.infer<typeof schemas.stateBody>
export type History = z.infer<typeof schemas.historyBody>
export type Agent = z.infer<typeof schemas.agentBody>
export type AgentsPage = z.infer<typeof schemas.agentsBody>
export type Network = z.infer<typeof schemas.networkBody>
export type Activity = z.infer<typeof schemas.activityBody>
export type Moment = z.infer<typeof schemas.momentBody>
export type Transparency = z.infer<typeof schemas.transparencyBody>

const DEADLINE_MS = 15_000
/**
 * Who was refused for asking too often, or by a service that is not there, asks again after this
 * unless told when.
 */
const RETRY_SECONDS = 5
/** Figures are asked for again so often at most, when something happened. */
const REFRESH_MS = 3_000

export type Trouble = { kind: 'limited' | 'gone' | 'busy'; until: number }

/** Why a question has no answer yet; undefined while all is well. */
export const trouble: Signal<Trouble | undefined> = signal(undefined)
/** Of each question that has none, the last one last. */
const troubles = new Map<symbol, Trouble>()

function setTrouble(question: symbol, its: Trouble | undefined): void {
  troubles.delete(question)
  if (its) troubles.set(question, its)
  trouble.value = [...troubles.values()].at(-1)
}

/** Counts up when figures are worth asking for again. */
export const changes = signal(0)
let lastChange = 0
let changeTimer: ReturnType<typeof setTimeout> | undefined

/** To be told of each arrival of events. The first is passed on at once. */
export function somethingHappened(): void {
  if (changeTimer !== undefined) return
  const wait = Math.max(300, lastChange + REFRESH_MS - Date.now())
  changeTimer = setTimeout(() => {
    changeTimer = undefined
    lastChange = Date.now()
    changes.value += 1
  }, wait)
}

/** An answer that says what was wrong with the question. */
export class Refused extends Error {
  readonly status: number
  constructor(status: number, message: string) {
    super(message)
    this.status = status
  }
}

/** Asks until there is an answer. Throws `Refused`, and when `abort` says so. */
export async function ask<T>(path: string, abort: AbortSignal): Promise<T> {
  const question = Symbol(path)
  try {
    for (;;) {
      const kind = await once(path, abort)
      // What the service says of itself; its schemas are where the type comes from.
      if ('answer' in kind) return kind.answer as T
      abort.throwIfAborted()
      const seconds = kind.seconds ?? RETRY_SECONDS
      setTrouble(question, { kind: kind.trouble, until: Date.now() + seconds * 1_000 })
      await pause(seconds * 1_000, abort)
    }
  } finally {
    setTrouble(question, undefined)
  }
}

type Outcome = { answer: unknown } | { trouble: Trouble['kind']; seconds?: number }

async function once(path: string, abort: AbortSignal): Promise<Outcome> {
  let response: Response
  try {
    response = await fetch(path, {
      signal: AbortSignal.any([abort, AbortSignal.timeout(DEADLINE_MS)]),
    })
  } catch {
    return { trouble: 'gone' }
  }
  const seconds = Number(response.headers.get('Retry-After')) || RETRY_SECONDS
  if (response.status === 429) return { trouble: 'limited', seconds }
  if (response.status >= 500) return { trouble: 'busy', seconds }
  try {
    const body: unknown = await response.json()
    if (response.ok) return { answer: body }
    const { message } = body as { message?: string }
    throw new Refused(response.status, message ?? `The service answered ${response.status}.`)
  } catch (error) {
    if (error instanceof Refused) throw error
    return { trouble: 'gone' }
  }
}

/** Resolves after so many ms, or when `abort` says so. */
export function pause(ms: number, abort: AbortSignal): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>()
  const timer = setTimeout(resolve, ms)
  abort.addEventListener('abort', () => {
    clearTimeout(timer)
    resolve()
  })
  return promise
}

export function query(
  path: string,
  parameters: Record<string, string | number | undefined>,
): string {
  const given = Object.entries(parameters).filter(
    ([, value]) => value !== undefined && value !== '',
  )
  const search = new URLSearchParams(given.map(([name, value]) => [name, String(value)]))
  return given.length === 0 ? path : `${path}?${search}`
}

export const statePath = (key: string) => `/observe/state/${encodeURIComponent(key.toWellFormed())}`

export interface Loaded<T> {
  data?: T
  refused?: Refused
}

export interface LoadOptions {
  /** Asked for again when something happened. */
  readonly isLive?: boolean
  /** What was there is shown until the new is, where this stays the same. */
  readonly subject?: string | undefined
  /** What counts up when to ask again. */
  readonly rounds?: ReadonlySignal<number>
}

/** What is at a path. Undefined: nothing is asked for. */
export function useLoaded<T>(
  path: string | undefined,
  { isLive = false, subject = path, rounds = changes }: LoadOptions = {},
): Loaded<T> {
  const state = useSignal<Loaded<T> & { subject?: string | undefined }>({})
  const wanted = useSignal({ path, isLive, subject })
  useEffect(() => {
    wanted.value = { path, isLive, subject }
  }, [path, isLive, subject])
  useSignalEffect(() => {
    const asked = wanted.value
    if (asked.isLive) rounds.value
    if (asked.path === undefined) return
    const abort = new AbortController()
    ask<T>(asked.path, abort.signal).then(
      (data) => {
        state.value = { data, subject: asked.subject }
      },
      (error: unknown) => {
        if (error instanceof Refused) state.value = { refused: error, subject: asked.subject }
      },
    )
    return () => abort.abort()
  })
  return state.value.subject === subject ? state.value : {}
}

/**
 * Characters that are held of a text: a window of events stays within some 40 MB, whatever agents
 * write.
 */
const HELD_CHARACTERS = 10_000

export function shorten(event: LogEvent): LogEvent {
  const isLong = (value: unknown): value is string =>
    typeof value === 'string' && value.length > HELD_CHARACTERS
  if (!Object.values(event.data).some(isLong)) return event
  const cut = Object.entries(event.data).map(([name, value]) => [
    name,
    // A copy: a slice would hold all of what it was cut from.
    isLong(value) ? structuredClone(value.slice(0, HELD_CHARACTERS)) : value,
  ])
  return { ...event, data: Object.fromEntries(cut), cut: true }
}

/** The event whole. */
export async function askForEvent(seq: number, abort: AbortSignal): Promise<LogEvent | undefined> {
  const page = await ask<EventsPage>(
    query('/observe/events', { since: seq - 1, until: seq, limit: 1 }),
    abort,
  )
  return page.events[0]
}
