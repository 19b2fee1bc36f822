/** How much happened, over time; the clock goes to a moment in it. */
import { useSignal } from '@preact/signals'
import { type Activity, query, useLoaded } from './api.ts'
import { goTo } from './clock.ts'
import { count, counted } from './parts.tsx'
import { KIND_NAMES, kindOf } from './words.tsx'

const KINDS = ['registry', 'message', 'state', 'read', 'removal'] as const
const WIDTH = 960
const HEIGHT = 60
/** Of a stretch without events, in buckets. */
const IDLE_WIDTH = 3
/** So that a few bars are no walls. */
const LEAST_PLACES = 40

type Bucket = Activity['buckets'][number]
interface Bar {
  bucket: Bucket
  x: number
}

/** Where each bucket is drawn: long stretches without any are squeezed. */
function layOut({ buckets, bucket_seconds: seconds }: Activity): {
  bars: Bar[]
  idle: number[]
  width: number
} {
  const bars: Bar[] = []
  const idle: number[] = []
  let x = 0
  let last: number | undefined
  for (const bucket of buckets) {
    const place = Math.round(Date.parse(bucket.start) / 1_000 / seconds)
    const empty = last === undefined ? 0 : place - last - 1
    if (empty > IDLE_WIDTH) idle.push(x)
    x += Math.min(empty, IDLE_WIDTH)
    bars.push({ bucket, x })
    x += 1
    last = place
  }
  // The latest is at the right.
  const width = Math.max(x, LEAST_PLACES)
  const left = width - x
  return {
    bars: bars.map(({ bucket, x: place }) => ({ bucket, x: place + left })),
    idle: idle.map((place) => place + left),
    width,
  }
}

const short = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'short' })
const said = (bucket: Bucket) =>
  `${short.format(new Date(bucket.start))}: ${counted(bucket.total, 'event')}`

export interface TimelineOptions {
  readonly agent?: string
  readonly label: string
  readonly buckets?: number
  /** The stretch that is shown; unless given all since the first event. */
  readonly from?: string | undefined
  readonly to?: string | undefined
  /** Where the clock is, in ms since 1970; undefined: live. */
  readonly marked?: number | undefined
}

export function Timeline({ agent, label, buckets = 120, from, to, marked }: TimelineOptions) {
  const path = query('/observe/activity', { buckets, agent, from, to })
  const { data, refused } = useLoaded<Activity>(path, {
    isLive: to === undefined,
    subject: 'timeline',
  })
  const chosen = useSignal<number | undefined>(undefined)
  if (!data || data.buckets.length === 0) {
    const text = data ? (from ? 'Nothing happened then.' : 'Nothing has happened yet.') : 'Loading…'
    return <p class="timeline quiet">{refused ? refused.message : text}</p>
  }
  const { bars, idle, width } = layOut(data)
  const highest = Math.max(...data.buckets.map(({ total }) => total))
  const unit = WIDTH / width
  const mark = marked === undefined ? undefined : placeOf(marked, data, bars)
  const index = Math.min(chosen.value ?? mark?.index ?? bars.length - 1, bars.length - 1)
  const at = bars[index]
  const open = () => {
    if (at) goTo(at.bucket.first_seq)
  }
  const steps: Readonly<Record<string, number>> = {
    ArrowLeft: index - 1,
    ArrowRight: index + 1,
    Home: 0,
    End: bars.length - 1,
  }
  return (
    <div class="timeline">
      <div
        role="slider"
        tabIndex={0}
        aria-label={label}
        aria-valuemin={0}
        aria-valuemax={bars.length - 1}
        aria-valuenow={index}
        aria-valuetext={at ? `${said(at.bucket)}. Enter shows everything as it was then.` : ''}
        onKeyDown={(event) => {
          const step = steps[event.key]
          if (event.key === 'Enter') open()
          else if (step !== undefined) chosen.value = Math.max(0, Math.min(bars.length - 1, step))
          else return
          event.preventDefault()
        }}
        onPointerMove={(event) => {
          const box = event.currentTarget.getBoundingClientRect()
          const place = ((event.clientX - box.left) / box.width) * width
          chosen.value = Math.max(
            0,
            bars.findLastIndex(({ x }) => x <= place),
          )
        }}
        onPointerLeave={() => {
          chosen.value = undefined
        }}
        onClick={open}
      >
        <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} preserveAspectRatio="none" aria-hidden="true">
          {idle.map((x) => (
            <rect
              key={x}
              class="idle"
              x={x * unit}
              y={HEIGHT - 2}
              width={IDLE_WIDTH * unit}
              height="2"
            />
          ))}
          {bars.map(({ bucket, x }, place) => {
            let top = HEIGHT
            return (
              <g
                key={bucket.start}
                class={place === index && chosen.value !== undefined ? 'chosen' : ''}
              >
                {KINDS.map((kind) => {
                  const total = Object.entries(bucket.types).reduce(
                    (sum, [type, its]) => (kindOf(type) === kind ? sum + its : sum),
                    0,
                  )
                  if (total === 0) return null
                  const height = Math.max(1, (total / highest) * (HEIGHT - 4))
                  top -= height
                  return (
                    <rect
                      key={kind}
                      class={kind}
                      x={x * unit}
                      y={top}
                      width={Math.max(1, unit - 1)}
                      height={height}
                    />
                  )
                })}
              </g>
            )
          })}
          {mark && <rect class="now" x={mark.x * unit - 1} y="0" width="2" height={HEIGHT} />}
        </svg>
      </div>
      <p class="timeline-words">
        <span>
          {chosen.value !== undefined && at
            ? `${said(at.bucket)} — show it as it was then`
            : `Since ${short.format(new Date(data.buckets[0]?.start ?? data.from))} · at most ${count(highest)} in a bar`}
        </span>
        <span class="legend">
          {KINDS.slice(0, 4).map((kind) => (
            <span key={kind} class={kind}>
              {KIND_NAMES[kind]}
            </span>
          ))}
        </span>
      </p>
    </div>
  )
}

/** Which bar a time is in or after, and where that is. */
function placeOf(time: number, { bucket_seconds: seconds }: Activity, bars: readonly Bar[]) {
  const index = bars.findLastIndex(({ bucket }) => Date.parse(bucket.start) <= time)
  const bar = bars[index]
  if (!bar) return { index: 0, x: bars[0]?.x ?? 0 }
  const part = (time - Date.parse(bar.bucket.start)) / (seconds * 1_000)
  return { index, x: bar.x + Math.min(1, part) }
}
