/** Where the reader is: the view and its filters, in the part of the address behind `#`, so that a link holds them. */
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

export const route = signal(read())

window.addEventListener('hashchange', () => {
  route.value = read()
})

function read(): Route {
  const [name = '', search = ''] = location.hash.replace(/^#\/?/, '').split(/\?(.*)/s)
  return { view: VIEWS.find((view) => view === name) ?? 'overview', parameters: new URLSearchParams(search) }
}

export function link(view: View, parameters: Record<string, string | number | undefined> = {}): string {
  const given = Object.entries(parameters).filter(([, value]) => value !== undefined && value !== '')
  const search = new URLSearchParams(given.map(([name, value]) => [name, String(value).toWellFormed()]))
  return `#/${view}${given.length === 0 ? '' : `?${search}`}`
}

/** Changes some parameters of the view; undefined removes one. */
export function change(parameters: Record<string, string | number | undefined>): void {
  const { view, parameters: old } = route.value
  location.hash = link(view, { ...Object.fromEntries(old), ...parameters })
}
