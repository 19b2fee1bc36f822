/** Every event, in words. */
import { useSignal } from '@preact/signals'
import { memo } from 'preact/compat'
import { useEffect, useMemo, useRef } from 'preact/hooks'
import { askForEvent, type LogEvent } from '../api.ts'
import { goTo, isPlaying, moment } from '../clock.ts'
import { Feed } from '../feed.ts'
import type { EventFilter } from '../live.ts'
import { Address, counted, LongText, Time, Waiting } from '../parts.tsx'
import { change, link, route } from '../route.ts'
import { kindOf, type Related, Sentence, TYPES } from '../words.tsx'

/** So many are drawn; more as the reader comes to their end. */
const DRAWN = 50
const MORE = 100
const ADDRESS = /^tab_[a-z0-9]{20}$/

export function FeedView() {
  const { parameters } = route.value
  const given = (name: string) => parameters.get(name) || undefined
  const filter = {
    ...{ type: given('type'), agent: given('agent'), with: given('with') },
    key: given('key'),
    text: given('text'),
  }
  const name = JSON.stringify(filter)
  const at = moment.value
  const feed = useMemo(() => new Feed(filter, at), [name])
  useEffect(() => () => feed.close(), [feed])
  useEffect(() => feed.moveTo(at, isPlaying.value), [feed, at])
  return (
    <>
      {filter.with ? (
        <Between one={filter.agent} other={filter.with} />
      ) : (
        <Filters key={name} filter={filter} />
      )}
      <Controls feed={feed} />
      <List key={name} feed={feed} at={at} />
    </>
  )
}

function Between({ one, other }: { one: string | undefined; other: string }) {
  return (
    <p class="notice">
      The conversation between <Address of={one} /> and <Address of={other} />.{' '}
      <a href={link('feed')}>All events</a>
    </p>
  )
}

/** Filters would be all that is seen there. */
const PHONE = '(max-width: 45rem)'

/**
 * What can be filtered by beside types: the parameter, what it is for the reader, and an example.
 */
const FIELDS = [
  ['agent', 'of the agent', 'tab_…'],
  ['key', 'about keys that begin with', 'answers/'],
  ['text', 'that say', 'good morning'],
] as const

function Filters({ filter }: { filter: EventFilter }) {
  const { type } = filter
  const chosen = new Set(type?.split(','))
  const wrong = useSignal(false)
  const toggle = (name: string) => {
    const next = chosen.has(name)
      ? [...chosen].filter((other) => other !== name)
      : [...chosen, name]
    change({ type: next.join(',') || undefined })
  }
  const isAny = Object.values(filter).some((value) => value !== undefined)
  return (
    <form
      class="filters"
      aria-label="Filters"
      onSubmit={(event) => {
        event.preventDefault()
        const form = new FormData(event.currentTarget)
        const text = (name: string) => String(form.get(name)) || undefined
        const agent = text('agent')?.trim()
        wrong.value = agent !== undefined && !ADDRESS.test(agent)
        if (!wrong.value) change({ agent, key: text('key'), text: text('text') })
      }}
    >
      <details open={isAny || !matchMedia(PHONE).matches}>
        <summary>What is shown</summary>
        <div>
          <fieldset>
            <legend>Show only</legend>
            {Object.entries(TYPES).map(([name, words]) => (
              <label key={name} class={`chip ${kindOf(name)}`}>
                <input type="checkbox" checked={chosen.has(name)} onChange={() => toggle(name)} />
                {words}
              </label>
            ))}
          </fieldset>
          {FIELDS.map(([name, words, example]) => (
            <label key={name} class="field">
              {words}
              <input
                name={name}
                type="search"
                placeholder={example}
                defaultValue={filter[name]}
                maxLength={200}
                autocomplete="off"
                spellcheck={false}
              />
            </label>
          ))}
          <button type="submit">Filter</button>
          {isAny && <a href={link('feed')}>all events</a>}
        </div>
      </details>
      {wrong.value && (
        <p role="alert" class="wrong">
          An address is tab_ and 20 letters and digits.
        </p>
      )}
    </form>
  )
}

function Controls({ feed }: { feed: Feed }) {
  const mode = feed.mode.value
  return (
    <div class="controls">
      {mode === 'live' && (
        <button type="button" onClick={() => feed.pause()}>
          Pause
        </button>
      )}
      {mode === 'paused' && (
        <button type="button" class="main" onClick={() => feed.resume()}>
          Continue
        </button>
      )}
      {mode === 'past' && (
        <button
          type="button"
          disabled={feed.isLoading.value}
          onClick={() => inBackground(goOn(feed))}
        >
          What came next
        </button>
      )}
      <span role="status">
        {mode === 'live' && 'Live: the latest is at the top.'}
        {mode === 'paused' && `Paused. ${counted(feed.missed.value, 'new event')} since.`}
        {mode === 'past' && 'You look at the past: at the top is the moment that the clock shows.'}
      </span>
    </div>
  )
}

/** Moves the clock on by a page of the feed. */
async function goOn(feed: Feed): Promise<void> {
  goTo(await feed.next())
}

/** What was asked for and has no answer shows that itself. */
function inBackground(work: Promise<void>): void {
  work.catch(() => undefined)
}

/**
 * By event: when a message was received, and which message a delivery was of; of those that are at
 * hand.
 */
function relate(events: readonly LogEvent[]): Map<LogEvent, Related> {
  const messages = new Map<unknown, LogEvent>()
  const related = new Map<LogEvent, Related>()
  for (const event of events) {
    if (event.type === 'message_sent') messages.set(event.data.message_id, event)
    if (event.type !== 'message_delivered') continue
    const message = messages.get(event.data.message_id)
    if (!message) continue
    related.set(event, { message })
    related.set(message, { delivered: event })
  }
  return related
}

function List({ feed, at }: { feed: Feed; at: number | undefined }) {
  const drawn = useSignal(DRAWN)
  const events = feed.events.value
  const related = useMemo(() => relate(events), [events])
  const visible = events.slice(-drawn.value).reverse()
  const more = () => {
    feed.pause()
    drawn.value += MORE
    if (drawn.value >= events.length) feed.older()
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
    if (mode !== 'paused') drawn.value = DRAWN
  }, [mode, at])
  const isBusy = feed.isLoading.value
  const hasOlder = feed.hasOlder.value || visible.length < events.length
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
          <Row
            key={event.seq}
            event={event}
            related={related.get(event)}
            isChosen={event.seq === at}
          />
        ))}
      </ol>
      {events.length === 0 && (
        <Waiting>
          {isBusy
            ? undefined
            : hasOlder
              ? 'None was found so far.'
              : mode === 'past'
                ? 'There was no such event yet.'
                : 'No such event yet. What comes is shown here at once.'}
        </Waiting>
      )}
      <div ref={end} />
      {hasOlder && (
        <button type="button" disabled={isBusy} onClick={more}>
          {isBusy ? 'Loading…' : events.length === 0 ? 'Search further back' : 'Older events'}
        </button>
      )}
      {!hasOlder && events.length > 0 && <p class="quiet">This is where it began.</p>}
    </>
  )
}

interface RowProps {
  event: LogEvent
  related: Related | undefined
  isChosen: boolean
}

/** What is related is worked out anew for each change of the list, and mostly the same. */
const isSame = (one: RowProps, other: RowProps) =>
  one.event === other.event &&
  one.isChosen === other.isChosen &&
  one.related?.delivered === other.related?.delivered &&
  one.related?.message === other.related?.message

const Row = memo(({ event, related, isChosen }: RowProps) => {
  const whole = useSignal<LogEvent | undefined>(undefined)
  const isOpen = useSignal(false)
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
    <li class={`${kindOf(event.type)}${isChosen ? ' chosen' : ''}`}>
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
        <Sentence event={event} related={related} />
      </span>
      <Time at={event.ts} />
      {isOpen.value && (
        <div class="details">
          <LongText text={JSON.stringify(shown, null, 2)} label={`Event ${event.seq}`} />
          {cut && <p class="quiet">Loading the rest…</p>}
          <p class="links">
            <a href={link('feed', { at: event.seq })}>Everything as it was then</a>
            {event.type === 'message_sent' && (
              <a href={link('feed', { agent: event.agent, with: String(event.data.to) })}>
                The conversation of the two
              </a>
            )}
          </p>
        </div>
      )}
    </li>
  )
}, isSame)
