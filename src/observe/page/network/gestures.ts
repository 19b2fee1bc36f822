/** What a reader does with a pointer, two fingers or a wheel. Places are those of the picture. */

/** A pointer that moved less has clicked. */
const CLICK_PIXELS = 5

interface Place {
  readonly x: number
  readonly y: number
}

export interface Gestures {
  /** A pointer is over a place, and not pressed. */
  readonly onHover: (x: number, y: number) => void
  readonly onLeave: () => void
  /** A pointer was pressed. */
  readonly onHold: () => void
  readonly onPan: (x: number, y: number) => void
  readonly onZoom: (x: number, y: number, factor: number) => void
  readonly onClick: (x: number, y: number) => void
}

/** Tells what is done on `stage`, until `signal` aborts. */
export function listen(stage: HTMLElement, gestures: Gestures, signal: AbortSignal): void {
  const pointers = new Map<number, Place>()
  let travelled = 0

  stage.addEventListener(
    'pointerdown',
    (event) => {
      if (event.button !== 0) return
      stage.setPointerCapture(event.pointerId)
      pointers.set(event.pointerId, placeOf(event))
      travelled = pointers.size > 1 ? CLICK_PIXELS : 0
      gestures.onHold()
    },
    { signal },
  )
  stage.addEventListener(
    'pointermove',
    (event) => {
      const before = pointers.get(event.pointerId)
      const now = placeOf(event)
      if (!before) {
        gestures.onHover(now.x, now.y)
        return
      }
      const [other] = [...pointers]
        .filter(([id]) => id !== event.pointerId)
        .map(([, place]) => place)
      pointers.set(event.pointerId, now)
      travelled += Math.hypot(now.x - before.x, now.y - before.y)
      if (travelled < CLICK_PIXELS) return
      if (other) {
        const wide = ({ x, y }: Place) => Math.max(1, Math.hypot(x - other.x, y - other.y))
        gestures.onZoom((now.x + other.x) / 2, (now.y + other.y) / 2, wide(now) / wide(before))
      }
      gestures.onPan((now.x - before.x) / pointers.size, (now.y - before.y) / pointers.size)
    },
    { signal },
  )
  for (const name of ['pointerup', 'pointercancel'] as const) {
    stage.addEventListener(
      name,
      (event) => {
        if (!pointers.delete(event.pointerId) || event.type === 'pointercancel') return
        const { x, y } = placeOf(event)
        if (travelled < CLICK_PIXELS) gestures.onClick(x, y)
      },
      { signal },
    )
  }
  stage.addEventListener('pointerleave', gestures.onLeave, { signal })
  stage.addEventListener(
    'wheel',
    (event) => {
      event.preventDefault()
      const { x, y } = placeOf(event)
      // Lines and pages, where a mouse counts so.
      const pixels = event.deltaY * ([1, 16, stage.clientHeight][event.deltaMode] ?? 1)
      gestures.onZoom(x, y, Math.exp(-Math.max(-240, Math.min(240, pixels)) / 400))
    },
    { signal, passive: false },
  )

  function placeOf({ clientX, clientY }: MouseEvent): Place {
    const box = stage.getBoundingClientRect()
    return { x: clientX - box.left - stage.clientLeft, y: clientY - box.top - stage.clientTop }
  }
}
