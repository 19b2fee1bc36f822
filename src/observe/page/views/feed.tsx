/** Every event, in words. */
import { useSignal } from '@preact/signals'
import { memo } from 'preact/compat'
import { useEffect, useMemo, useRef } from 'preact/hooks'
import { askForEvent, type LogEvent } from '../api.ts'
import { Feed } from '../feed.ts'
import { counted, LongText, Time, Waiting } from '../parts.tsx'
import { change, link, route } from '../route.ts'
import { kindOf, Sentence, TYPES } from '../words.tsx'

/** So many are drawn; more as the reader comes to their end. */
const DRAWN = 100
const ADDRESS = /^tab_[a-z0-9]{20}$/

export function FeedView() {
  const { parameters } = route.value
  const type = parameters.get('type') || undefined
  const agent = parameters.get('agent') || undefined
  const at = Number(parameters.get('at')) || undefined
  const feed = useMemo(() => new Feed({ type, agent, at }), [type, agent, at])
  useEffect(() => () => feed.close(), [feed])
  return (
    <>
      <Filters type={type} agent={agent} />
      <Controls feed={feed} at={at} />
      <List key={`${type} ${agent} ${at}`} feed={feed} at={at} />
    </>
  )
}

function Filters({ type, agent }: { type: string | undefined; agent: string | undefined }) {
  const chosen = new Set(type?.split(','))
  const wrong = useSignal(false)
  const toggle = (name: string) => {
    const next = chosen.has(name) ? [...chosen].filter((other) => other !== name) : [...chosen, name]
    change({ type: next.join(',') || undefined })
  }
  return (
    <form
      class="filters"
      aria-label="Filters"
      onSubmit={(event) => {
        event.preventDefault()
        const text = String(new FormData(event.currentTarget).get('agent')).trim()
        wrong.value = text !== '' && !ADDRESS.test(text)
        if (!wrong.value) change({ agent: text || undefined })
      }}
    >
      <fieldset>
        <legend>Show only</legend>
        {Object.entries(TYPES).map(([name, words]) => (
          <label key={name} class={`chip ${kindOf(name)}`}>
            <input type="checkbox" checked={chosen.has(name)} onChange={() => toggle(name)} />
            {words}
          </label>
        ))}
      </fieldset>
      <label class="field">
        of the agent
        <input
          key={agent}
          name="agent"
          type="search"
          placeholder="tab_…"
          defaultValue={agent}
          autocomplete="off"
          spellcheck={false}
        />
      </label>
      <button type="submit">Filter</button>
      {(type || agent) && <a href={link('feed')}>all events</a>}
      {wrong.value && (
        <p role="alert" class="wrong">
          An address is tab_ and 20 letters and digits.
        </p>
      )}
    </form>
  )
}

function Controls({ feed, at }: { feed: Feed; at: number | undefined }) {
  const mode = feed.mode.value
  const resume = () => {
    if (at === undefined) feed.resume()
    else change({ at: undefined })
  }
  return (
    <div class="controls">
      {mode === 'live' ? (
        <button type="button" onClick={() => feed.pause()}>
          Pause
        </button>
      ) : (
        <button type="button" class="main" onClick={resume}>
          {mode === 'paused' ? 'Continue' : 'Go to the present'}
        </button>
      )}
      <span role="status">
        {mode === 'live' && 'Live: the latest is at the top.'}
        {mode === 'paused' && `Paused. ${counted(feed.missed.value, 'new event')} since.`}
        {mode === 'past' && 'You look at the past.'}
      </span>
    </div>
  )
}

function List({ feed, at }: { feed: Feed; at: number | undefined }) {
  const drawn = useSignal(DRAWN)
  const events = feed.events.value
  // What one jumped to is at the end of the list: from there on upwards is what followed.
  const order = events.toReversed()
  const visible = at === undefined ? order.slice(0, drawn.value) : order
  const more = () => {
    if (at === undefined && drawn.value < events.length) {
      feed.pause()
      drawn.value += DRAWN
    } else {
      drawn.value += DRAWN
      feed.older()
    }
  }
  const end = useRef<HTMLDivElement>(null)
  const moreNow = useRef(more)
  moreNow.current = more
  useEffect(() => {
    const seen = new IntersectionObserver(([entry]) => {
      // Only who scrolls asks for more: a short list must not pause itself.
      if (entry?.isIntersecting && window.scrollY > 200) moreNow.current()
    })
    if (end.current) seen.observe(end.current)
    return () => seen.disconnect()
  }, [])
  const mode = feed.mode.value
  useEffect(() => {
    if (mode === 'live') drawn.value = DRAWN
  }, [mode])
  const isBusy = feed.isLoading.value
  if (feed.refused.value) return <Waiting refused={feed.refused.value} />
  return (
    <>
      {feed.hasNewer.value && (
        <button type="button" disabled={isBusy} onClick={() => feed.newer()}>
          Newer events
        </button>
      )}
      <ol class="events" aria-label="Events, the latest first" aria-busy={isBusy}>
        {visible.map((event) => (
          <Row key={event.seq} event={event} isChosen={event.seq === at} />
        ))}
      </ol>
      {events.length === 0 && (
        <Waiting>{isBusy ? undefined : 'No such event yet. What comes is shown here at once.'}</Waiting>
      )}
      <div ref={end} />
      {(feed.hasOlder.value || visible.length < events.length) && (
        <button type="button" disabled={isBusy} onClick={more}>
          {isBusy ? 'Loading…' : 'Older events'}
        </button>
      )}
      {!feed.hasOlder.value && events.length > 0 && visible.length === events.length && (
        <p class="quiet">This is where it began.</p>
      )}
    </>
  )
}

const Row = memo(({ event, isChosen }: { event: LogEvent; isChosen: boolean }) => {
  const whole = useSignal<LogEvent | undefined>(undefined)
  const isOpen = useSignal(false)
  const row = useRef<HTMLLIElement>(null)
  useEffect(() => {
    if (isChosen) row.current?.scrollIntoView({ block: 'center' })
  }, [isChosen])
  useEffect(() => {
    if (!isOpen.value || !event.cut || whole.value) return
    const abort = new AbortController()
    askForEvent(event.seq, abort.signal).then(
      (found) => {
        whole.value = found
      },
      () => undefined,
    )
    return () => abort.abort()
  }, [isOpen.value])
  const { cut, ...shown } = whole.value ?? event
  return (
    <li ref={row} class={`${kindOf(event.type)}${isChosen ? ' chosen' : ''}`}>
      <button
        type="button"
        class="fold"
        aria-expanded={isOpen.value}
        aria-label={`Event ${event.seq} as JSON`}
        onClick={() => {
          isOpen.value = !isOpen.value
        }}
      >
        {'{ }'}
      </button>
      <span class="what">
        <Sentence event={event} />
      </span>
      <Time at={event.ts} />
      {isOpen.value && (
        <div class="details">
          <LongText text={JSON.stringify(shown, null, 2)} label={`Event ${event.seq}`} />
          {cut && <p class="quiet">Loading the rest…</p>}
          <a href={link('feed', { at: event.seq })}>Link to this event</a>
        </div>
      )}
    </li>
  )
})
