/** The page: what surrounds the views. */
import { computed, effect } from '@preact/signals'
import { render } from 'preact'
import { useEffect, useState } from 'preact/hooks'
import { trouble } from './api.ts'
import { ClockBar } from './clock-bar.tsx'
import { follow, streamState } from './live.ts'
import { link, route, VIEW_NAMES, VIEWS, type View } from './route.ts'
import { AgentsView } from './views/agents.tsx'
import { FeedView } from './views/feed.tsx'
import { NetworkView } from './views/network.tsx'
import { Overview } from './views/overview.tsx'
import { StateView } from './views/state.tsx'
import { TransparencyView } from './views/transparency.tsx'
import './style.css'

const COMPONENTS: Readonly<Record<View, () => preact.JSX.Element>> = {
  overview: Overview,
  feed: FeedView,
  network: NetworkView,
  state: StateView,
  agents: AgentsView,
  transparency: TransparencyView,
}

/** Of events that come together so many are shown as they happen. */
const SEEN = 50

function Page() {
  const { view } = route.value
  const Shown = COMPONENTS[view]
  // The feed has a stream of its own, with its filters.
  useEffect(
    () => (view === 'feed' ? undefined : follow({ keep: SEEN, onEvents: () => undefined })),
    [view === 'feed'],
  )
  return (
    <>
      <button type="button" class="skip" onClick={skip}>
        To the content
      </button>
      <header class="top">
        <span class="name">
          Tabulum <span>observed</span>
        </span>
        <nav aria-label="Views">
          {VIEWS.map((name) => (
            <a key={name} href={link(name)} aria-current={name === view ? 'page' : undefined}>
              {VIEW_NAMES[name]}
            </a>
          ))}
        </nav>
        <Connection />
      </header>
      <Trouble />
      <main id="content" tabIndex={-1}>
        <h1 class={view === 'overview' ? 'hidden' : ''}>{VIEW_NAMES[view]}</h1>
        <Shown />
      </main>
      <ClockBar />
    </>
  )
}

function skip(): void {
  document.getElementById('content')?.focus()
}

const STATES = {
  connecting: 'connecting…',
  live: 'live',
  reconnecting: 'reconnecting…',
  refused: 'not live',
  gone: 'service gone',
} as const

function Connection() {
  return (
    <span class={`connection ${streamState.value}`} role="status">
      {STATES[streamState.value]}
    </span>
  )
}

/** Why what is shown may be old. */
function Trouble() {
  const [, setNow] = useState(0)
  const now = trouble.value
  useEffect(() => {
    if (!now) return
    const timer = setInterval(() => setNow(Date.now()), 1_000)
    return () => clearInterval(timer)
  }, [now])
  const text = now
    ? wordsOf(now.kind, Math.max(0, Math.ceil((now.until - Date.now()) / 1_000)))
    : ofStream()
  return (
    <div role="alert" class={text ? 'trouble' : 'hidden'}>
      {text}
    </div>
  )
}

function wordsOf(kind: 'limited' | 'gone' | 'busy', seconds: number): string {
  const again = seconds === 0 ? 'Asking again…' : `Asking again in ${seconds} s.`
  if (kind === 'limited') return `You asked more often than one client may. ${again}`
  if (kind === 'busy') return `The service has trouble and cannot answer now. ${again}`
  return `The service does not answer. What you see may be old. ${again}`
}

function ofStream(): string {
  if (streamState.value === 'gone')
    return 'The service does not answer. What you see may be old. Trying again…'
  if (streamState.value === 'reconnecting')
    return 'The connection was lost. Connecting again; nothing will be missed.'
  if (streamState.value === 'refused')
    return 'The service is up, but has no live stream free for you, or you asked too often. Trying again…'
  return ''
}

const shownView = computed(() => route.value.view)
effect(() => {
  document.title = `${VIEW_NAMES[shownView.value]} · Tabulum, observed`
  window.scrollTo(0, 0)
})

const root = document.getElementById('page')
if (root) render(<Page />, root)
