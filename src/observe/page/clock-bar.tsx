/** The clock, along the bottom of every view: where it is, and what moves it. */
import { useSignal } from '@preact/signals'
import { useEffect } from 'preact/hooks'
import { type Moment, query, useLoaded } from './api.ts'
import { goTo, goToTime, isPlaying, moment, play, playedTo, SPEEDS, speed, stop } from './clock.ts'
import { Time } from './parts.tsx'
import { Timeline } from './timeline.tsx'

/** Each look closer shows so much less of time. */
const CLOSER = 8
const CLOSEST_MS = 2 * 3_600_000

export function ClockBar() {
  const at = moment.value
  const then = useLoaded<Moment>(at === undefined ? undefined : query('/observe/moment', { at }), {
    subject: 'moment',
  })
  const shown = at === undefined ? undefined : (playedTo.value ?? timeOf(then.data))
  const range = useSignal<{ from: number; to: number } | undefined>(undefined)
  const closer = () => {
    const { from, to } = range.value ?? { from: 0, to: 0 }
    const middle = shown ?? Date.now()
    const width = Math.max(CLOSEST_MS, range.value ? (to - from) / CLOSER : 7 * 86_400_000)
    range.value = { from: middle - width / 2, to: middle + width / 2 }
  }
  return (
    <footer>
      <div class="clock" role="group" aria-label="The clock">
        {at === undefined ? (
          <span class="clock-state">Live</span>
        ) : (
          <button type="button" class="main" onClick={() => goTo(undefined)}>
            Go to the present
          </button>
        )}
        {at !== undefined && (
          <button
            type="button"
            onClick={() => (isPlaying.value ? stop() : play(new Date(shown ?? Date.now())))}
            disabled={shown === undefined}
          >
            {isPlaying.value ? 'Stop' : 'Play'}
          </button>
        )}
        {at !== undefined && (
          <label>
            <span class="hidden">Speed</span>
            <select
              value={speed.value}
              onChange={({ currentTarget }) => (speed.value = Number(currentTarget.value))}
            >
              {SPEEDS.map((times) => (
                <option key={times} value={times}>
                  {times}×
                </option>
              ))}
            </select>
          </label>
        )}
        {at !== undefined && (
          <span role="status" class="clock-state">
            {shown === undefined ? (
              at === 0 || then.data ? (
                'Before the first event'
              ) : (
                '…'
              )
            ) : (
              <>
                As it was: <Time at={new Date(shown).toISOString()} isWhole />
              </>
            )}
          </span>
        )}
        <GoToTime shown={shown} />
        <span class="clock-range">
          <button type="button" onClick={closer} aria-label="Show less of the time">
            +
          </button>
          <button
            type="button"
            disabled={range.value === undefined}
            onClick={() => (range.value = undefined)}
            aria-label="Show all of the time"
          >
            −
          </button>
        </span>
      </div>
      <Timeline
        label="All that happened, over time"
        from={range.value && new Date(range.value.from).toISOString()}
        to={range.value && new Date(range.value.to).toISOString()}
        marked={shown}
      />
    </footer>
  )
}

function timeOf(then: Moment | undefined): number | undefined {
  return then?.ts ? Date.parse(then.ts) : undefined
}

/** A day and an hour, as the reader's clock has them. */
function GoToTime({ shown }: { shown: number | undefined }) {
  const abort = useSignal<AbortController | undefined>(undefined)
  useEffect(() => () => abort.value?.abort(), [])
  return (
    <form
      class="clock-time"
      onSubmit={(event) => {
        event.preventDefault()
        const text = String(new FormData(event.currentTarget).get('time'))
        const time = new Date(text)
        if (Number.isNaN(time.getTime())) return
        abort.value?.abort()
        abort.value = new AbortController()
        goToTime(time, abort.value.signal).catch(() => undefined)
      }}
    >
      <label>
        <span class="hidden">The day and the hour</span>
        <input
          key={shown}
          type="datetime-local"
          name="time"
          step="1"
          defaultValue={local(shown ?? Date.now())}
          required
        />
      </label>
      <button type="submit">Go there</button>
    </form>
  )
}

/** As the input takes it, in the reader's zone. */
function local(ms: number): string {
  const date = new Date(ms)
  return new Date(ms - date.getTimezoneOffset() * 60_000).toISOString().slice(0, 19)
}
