/**
 * Where the reader is: the view and its filters, in the part of the address behind `#`, so that a
 * link holds them.
 */
import { signal } from '@preact/signals'

export const VIEWS = ['overview', 'feed', 'network', 'state', 'agents', 'transparency'] as const
export type View = (typeof VIEWS)[number]

export const VIEW_NAMES: Readonly<Record<View, string>> = {
  overview: 'Overview',
  feed: 'Feed',
  network: 'Network',
  state: 'State',
  agents: 'Agents',
  transparency: 'Transparency',
}

export interface Route {
  readonly view: View
  readonly parameters: URLSearchParams
}

export const route = signal<Route>(read())

window.addEventListener('hashchange', () => {
  route.value = read()
})

function read(): Route {
  const [name = '', search = ''] = location.hash.replace(/^#\/?/, '').split(/\?(.*)/s)
  return {
    view: VIEWS.find((view) => view === name) ?? 'overview',
    parameters: new URLSearchParams(search),
  }
}

/** The address of a view. It is at the same moment, unless `at` is among the parameters. */
export function link(
  view: View,
  parameters: Record<string, string | number | undefined> = {},
): string {
  const at = route.value.parameters.get('at') ?? undefined
  const given = Object.entries({ at, ...parameters }).filter(
    ([, value]) => value !== undefined && value !== '',
  )
  const search = new URLSearchParams(
    given.map(([name, value]) => [name, String(value).toWellFormed()]),
  )
  return `#/${view}${given.length === 0 ? '' : `?${search}`}`
}

/**
 * Changes some parameters of the view; undefined removes one. A step of the clock is nothing that
 * "back" goes back to.
 */
export function change(
  parameters: Record<string, string | number | undefined>,
  { isStep = false }: { isStep?: boolean } = {},
): void {
  const { view, parameters: old } = route.value
  const address = link(view, { ...Object.fromEntries(old), ...parameters })
  if (!isStep) {
    location.hash = address
    return
  }
  history.replaceState(null, '', address)
  route.value = read()
}
