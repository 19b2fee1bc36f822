/**
 * What is painted above the bitmap in each frame: who is pointed at, messages on their way, labels.
 */
import type { LogEvent } from '../api.ts'
import { shortAddress } from '../parts.tsx'
import type { Camera } from './camera.ts'
import { at, type Graph } from './graph.ts'
import { type Colours, radiusOf } from './messages.ts'

/**
 * Labels shown where all is seen on a wide screen, and at most; and how far they stay apart, in
 * pixels.
 */
const FEW_LABELS = 14
const MOST_LABELS = 60
const LABEL_WIDTH = 104
const LABEL_HEIGHT = 22
/** How long a message is on its way, and how many are shown at once. */
const PULSE_MS = 900
const MOST_PULSES = 80

interface Pulse {
  readonly from: number
  readonly to: number
  readonly began: number
}

/** What there is to paint. */
export interface Scene {
  readonly graph: Graph
  /** x and y of each agent, in the plane. */
  readonly places: Float32Array
  readonly colours: Colours
  readonly camera: Camera
  /** Radius of the largest dot. */
  readonly unit: number
  /** Agents, those who talk most first. */
  readonly bySize: readonly number[]
  readonly pointed: number | undefined
  /** 1 for each agent that the reader looks for; undefined where all are. */
  readonly found: Uint8Array | undefined
  /** Few are shown: the neighbourhood of one. */
  readonly isNeighbourhood: boolean
}

export class Overlay {
  readonly canvas = document.createElement('canvas')
  #pulses: Pulse[] = []

  /** Messages on their way. */
  get pulses(): number {
    return this.#pulses.length
  }

  resize(width: number, height: number): void {
    this.canvas.width = Math.round(width * devicePixelRatio)
    this.canvas.height = Math.round(height * devicePixelRatio)
  }

  /** Sets messages that were just sent on their way. */
  pulse(events: readonly LogEvent[], { indexOf }: Graph): void {
    for (const { type, data } of events) {
      if (type !== 'message_sent' || this.#pulses.length >= MOST_PULSES) continue
      const from = indexOf.get(String(data.from))
      const to = indexOf.get(String(data.to))
      if (from === undefined || to === undefined || from === to) continue
      // Those that come together do not move as one.
      this.#pulses.push({ from, to, began: performance.now() + 20 * this.#pulses.length })
    }
  }

  /** Another network is shown. */
  forgetPulses(): void {
    this.#pulses = []
  }

  paint(scene: Scene, now: number): void {
    this.#pulses = this.#pulses.filter(({ began }) => now - began < PULSE_MS)
    const context = this.canvas.getContext('2d')
    if (!context) return
    const { width, height } = scene.camera
    const ratio = this.canvas.width / width
    context.setTransform(ratio, 0, 0, ratio, 0, 0)
    context.clearRect(0, 0, width, height)
    if (scene.pointed !== undefined) paintPointed(context, scene, scene.pointed)
    for (const pulse of this.#pulses) paintPulse(context, scene, pulse, now)
    context.globalAlpha = 1
    paintLabels(context, scene)
  }
}

/** Where an agent is on the screen. */
export function onScreen(
  { places, camera }: Pick<Scene, 'places' | 'camera'>,
  index: number,
): readonly [number, number] {
  return camera.onScreen(at(places, 2 * index), at(places, 2 * index + 1))
}

function paintPointed(context: CanvasRenderingContext2D, scene: Scene, pointed: number): void {
  const { one, other, weights, starts, pairs, sizes } = scene.graph
  const [x, y] = onScreen(scene, pointed)
  context.strokeStyle = scene.colours.accent
  context.globalAlpha = 0.7
  for (let place = at(starts, pointed); place < at(starts, pointed + 1); place++) {
    const pair = at(pairs, place)
    const partner = at(one, pair) === pointed ? at(other, pair) : at(one, pair)
    const [toX, toY] = onScreen(scene, partner)
    context.lineWidth = 0.8 + 2.4 * at(weights, pair)
    context.beginPath()
    context.moveTo(x, y)
    context.lineTo(toX, toY)
    context.stroke()
  }
  context.globalAlpha = 1
  context.lineWidth = 2.5
  context.beginPath()
  context.arc(x, y, radiusOf(at(sizes, pointed), scene.unit) + 3.5, 0, 2 * Math.PI)
  context.stroke()
}

function paintPulse(
  context: CanvasRenderingContext2D,
  scene: Scene,
  { from, to, began }: Pulse,
  now: number,
): void {
  const part = (now - began) / PULSE_MS
  if (part < 0) return
  const [fromX, fromY] = onScreen(scene, from)
  const [toX, toY] = onScreen(scene, to)
  // On its way for two thirds of the time; then it has arrived.
  const way = Math.min(1, part * 1.5)
  const eased = way * way * (3 - 2 * way)
  const [x, y] = [fromX + (toX - fromX) * eased, fromY + (toY - fromY) * eased]
  context.strokeStyle = scene.colours.message
  context.fillStyle = scene.colours.message
  context.lineWidth = 2
  context.globalAlpha = 0.5 * (1 - part)
  context.beginPath()
  context.moveTo(fromX, fromY)
  context.lineTo(x, y)
  context.stroke()
  context.beginPath()
  if (way < 1) {
    context.globalAlpha = 1
    context.arc(x, y, 3.5, 0, 2 * Math.PI)
    context.fill()
  } else {
    context.globalAlpha = Math.max(0, 3 * (1 - part))
    context.arc(toX, toY, 6 + 14 * (part - 2 / 3) * 3, 0, 2 * Math.PI)
    context.stroke()
  }
}

/** Of those in sight who talk most, as far as there is room; and of whom the reader looks for. */
function paintLabels(context: CanvasRenderingContext2D, scene: Scene): void {
  const { graph, camera, colours, found, pointed = -1 } = scene
  const { width, height, zoom } = camera
  const few = scene.isNeighbourhood ? MOST_LABELS : Math.max(5, (FEW_LABELS * width) / 1_100)
  const most = Math.min(MOST_LABELS, few * Math.max(1, zoom ** 2))
  const columns = Math.ceil(width / LABEL_WIDTH) + 2
  const steps = [-1, 0, 1].flatMap((down) => [-1, 0, 1].map((right) => down * columns + right))
  /** Cells of a grid in which there is a label. */
  const taken = new Set<number>()
  let labels = 0
  context.font = `12px ${colours.font}`
  context.textAlign = 'center'
  context.textBaseline = 'top'
  context.lineJoin = 'round'
  const label = (index: number, isWanted: boolean) => {
    const address = graph.nodes[index]?.address
    const [x, y] = onScreen(scene, index)
    const below = y + radiusOf(at(graph.sizes, index), scene.unit) + 3
    if (address === undefined || !(x > 0 && x < width && y > 0 && below < height - 12)) return
    const cell = Math.floor(x / LABEL_WIDTH) + columns * Math.floor(below / LABEL_HEIGHT)
    if (!isWanted && steps.some((step) => taken.has(cell + step))) return
    taken.add(cell)
    labels += 1
    const text = shortAddress(address)
    const half = LABEL_WIDTH / 2 - 6
    const middle = Math.min(width - half, Math.max(half, x))
    context.lineWidth = 4
    context.strokeStyle = colours.ground
    context.strokeText(text, middle, below)
    context.fillStyle = isWanted ? colours.accent : colours.text
    context.fillText(text, middle, below)
  }
  if (pointed >= 0) label(pointed, true)
  for (const index of scene.bySize) {
    if (labels >= most) break
    if (index !== pointed && (!found || found[index] === 1)) label(index, false)
  }
}
