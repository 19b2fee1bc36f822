/** What of the plane is seen, and moving there: at once, or in a glide of some frames. */
import { at } from './graph.ts'
import type { View } from './messages.ts'

const GLIDE_MS = 180
/** Times the scale at which all is seen. */
const LEAST_ZOOM = 0.4
const MOST_ZOOM = 60
const BORDER = 36

/** Sizes and places of the screen are in CSS pixels, from the upper left corner. */
export class Camera {
  view: View = { x: 0, y: 0, scale: 1 }
  /** The view in which all is seen. */
  whole: View = { x: 0, y: 0, scale: 1 }
  /** All is kept in sight until the reader has moved the picture. */
  isWhole = true
  width = 1
  height = 1
  #glide: { from: View; to: View; began: number } | undefined

  /** How much nearer the reader is than where all is seen. */
  get zoom(): number {
    return this.view.scale / this.whole.scale
  }

  /**
   * What there is to see has changed, or the size of the picture.
   *
   * @param places x and y of each agent
   * @param isCentred what is at 0, 0 is in the middle
   */
  fit(places: Float32Array, isCentred: boolean): void {
    this.whole = this.#wholeOf(places, isCentred)
    if (this.isWhole) this.view = this.whole
  }

  /** Where a place of the plane is on the screen. */
  onScreen(x: number, y: number): readonly [number, number] {
    const { view } = this
    return [(x - view.x) * view.scale + this.width / 2, (y - view.y) * view.scale + this.height / 2]
  }

  pan(x: number, y: number): void {
    this.isWhole = false
    const { scale } = this.view
    this.view = { x: this.view.x - x / scale, y: this.view.y - y / scale, scale }
  }

  /** What is at that place of the screen stays there. */
  zoomAt(x: number, y: number, factor: number): void {
    this.isWhole = false
    this.stop()
    const { scale } = this.view
    const next = this.#bounded(scale * factor)
    const [right, down] = [x - this.width / 2, y - this.height / 2]
    this.view = {
      x: this.view.x + right / scale - right / next,
      y: this.view.y + down / scale - down / next,
      scale: next,
    }
  }

  /**
   * In the middle of the picture.
   *
   * @param isStill at once, without a glide
   */
  zoomBy(factor: number, isStill: boolean): void {
    this.#goTo({ ...this.view, scale: this.#bounded(this.view.scale * factor) }, isStill)
  }

  showWhole(isStill: boolean): void {
    this.isWhole = true
    this.#goTo(this.whole, isStill)
  }

  /** Brings a place of the plane into the middle, and near enough. */
  lookAt(x: number, y: number, isStill: boolean): void {
    this.isWhole = false
    const scale = this.#bounded(Math.max(this.view.scale, 1.5 * this.whole.scale))
    this.#goTo({ x, y, scale }, isStill)
  }

  /** From where a glide under way leads to. */
  glideBy(x: number, y: number, isStill: boolean): void {
    this.isWhole = false
    const { scale } = this.view
    const from = this.#glide?.to ?? this.view
    this.#goTo({ ...from, x: from.x - x / scale, y: from.y - y / scale }, isStill)
  }

  /** Ends a glide where it is. */
  stop(): void {
    this.#glide = undefined
  }

  /**
   * Goes on with a glide.
   *
   * @param now as `requestAnimationFrame` has it
   * @returns whether there was one
   */
  step(now: number): boolean {
    if (!this.#glide) return false
    const { from, to, began } = this.#glide
    const part = Math.min(1, Math.max(0, (now - began) / GLIDE_MS))
    const eased = 1 - (1 - part) ** 3
    this.view = {
      x: from.x + (to.x - from.x) * eased,
      y: from.y + (to.y - from.y) * eased,
      scale: from.scale * (to.scale / from.scale) ** eased,
    }
    if (part === 1) this.stop()
    return true
  }

  #goTo(to: View, isStill: boolean): void {
    this.#glide = isStill ? undefined : { from: this.view, to, began: performance.now() }
    if (isStill) this.view = to
  }

  #bounded(scale: number): number {
    return Math.min(MOST_ZOOM * this.whole.scale, Math.max(LEAST_ZOOM * this.whole.scale, scale))
  }

  #wholeOf(places: Float32Array, isCentred: boolean): View {
    let [left, right, top, bottom] = [Infinity, -Infinity, Infinity, -Infinity]
    for (let index = 0; index < places.length; index += 2) {
      left = Math.min(left, at(places, index))
      right = Math.max(right, at(places, index))
      top = Math.min(top, at(places, index + 1))
      bottom = Math.max(bottom, at(places, index + 1))
    }
    if (!(right >= left)) return { x: 0, y: 0, scale: 1 }
    if (isCentred) {
      right = Math.max(right, -left)
      bottom = Math.max(bottom, -top)
      left = -right
      top = -bottom
    }
    const across = (this.width - 2 * BORDER) / Math.max(right - left, 1)
    const down = (this.height - 2 * BORDER) / Math.max(bottom - top, 1)
    return {
      x: (left + right) / 2,
      y: (top + bottom) / 2,
      scale: Math.max(1e-6, Math.min(across, down, 4)),
    }
  }
}
