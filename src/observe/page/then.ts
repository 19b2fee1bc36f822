/** Answers as they were at the moment that the clock shows. */
import type { ReadonlySignal } from '@preact/signals'
import { type Loaded, query, useLoaded } from './api.ts'
import { asOf } from './clock.ts'

type Parameters = Record<string, string | number | undefined>

/**
 * Where there is no path, nothing is asked for. @param rounds what counts up when to ask again,
 * while it is live
 */
export function useThen<T>(
  path: string | undefined,
  parameters: Parameters = {},
  rounds?: ReadonlySignal<number>,
): Loaded<T> {
  const at = asOf.value
  const subject = path && query(path, parameters)
  return useLoaded<T>(path && query(path, { ...parameters, at }), {
    ...{ isLive: at === undefined, subject },
    ...(rounds && { rounds }),
  })
}

/** The latest events up to that moment. */
export function useLatest<T>(parameters: Parameters | undefined): Loaded<T> {
  const at = asOf.value
  const before = at === undefined ? FAR : at + 1
  const subject = parameters && query('/observe/events', parameters)
  const path = parameters && query('/observe/events', { ...parameters, before })
  return useLoaded<T>(path, { isLive: at === undefined, subject })
}

/** After any event. */
export const FAR = 999_999_999_999_999
