/**
 * The picture of the network: what a reader moves, points at and chooses in. The worker places
 * agents and draws them into a bitmap that reaches beyond what is seen; here it is moved and
 * stretched at once, and drawn anew as soon as the worker has. So moving costs the same however
 * much there is, and needs no WebGL. Drawn anew for each frame, as sigma does by WebGL, 10,000
 * agents and 50,000 pairs came to one frame a second where a machine has no graphics processor; so
 * they come to some 60 (`npm run bench -- page`).
 */
import type { LogEvent, Network } from '../api.ts'
import { count, counted, shortAddress } from '../parts.tsx'
import { at, type Graph, messagesOf, toGraph } from './graph.ts'
import { type Colours, type FromWorker, radiusOf, type ToWorker, type View } from './messages.ts'

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
const ZOOM_STEP = 1.4
const PAN_STEP = 90
const GLIDE_MS = 180
/** Times the scale at which all is seen. */
const LEAST_ZOOM = 0.4
const MOST_ZOOM = 60
/** A pointer that moved less has clicked. */
const CLICK_PIXELS = 5
/** An agent is pointed at from so far away. */
const NEAR_PIXELS = 9
/** Pairs have doubled since all were placed: they are placed anew, from where they are. */
const GROWN = 2
const BORDER = 36

/**
 * Where agents were when the reader was here last; they are there again when the reader comes back.
 */
const remembered = new Map<string, readonly [number, number, number]>()
const MOST_REMEMBERED = 200_000
let pairsWhenArranged = 0
/**
 * How the plane is stretched downwards, so that a network fills the picture: by the shape of the
 * first one.
 */
let stretch: number | undefined

export interface PictureOptions {
  /** One was chosen, by a click or by keys. */
  readonly onOpen: (address: string) => void
  /** Back to all. */
  readonly onLeave: () => void
  /** In words, what is pointed at or gone to by keys. */
  readonly onPoint: (words: string, isByKeys: boolean) => void
  readonly onFailure: () => void
}

interface Pulse {
  readonly from: number
  readonly to: number
  readonly began: number
}

export const isSupported = () => 'OffscreenCanvas' in globalThis && 'Worker' in globalThis

export class Picture {
  readonly #stage: HTMLElement
  readonly #options: PictureOptions
  readonly #base = document.createElement('canvas')
  readonly #overlay = document.createElement('canvas')
  readonly #worker = new Worker(new URL('./worker.ts', import.meta.url), { type: 'module' })
  readonly #abort = new AbortController()
  readonly #resizes: ResizeObserver
  readonly #dark = matchMedia('(prefers-color-scheme: dark)')
  readonly #still = matchMedia('(prefers-reduced-motion: reduce)')
  #graph: Graph = toGraph({ nodes: [], edges: [] })
  #bySize: number[] = []
  #places: Float32Array = new Float32Array(0)
  #groups: Uint8Array = new Uint8Array(0)
  #colours: Colours
  #centre: string | undefined
  #found: Uint8Array | undefined
  #view: View = { x: 0, y: 0, scale: 1 }
  /** Of the bitmap that is shown. */
  #drawn: View = { x: 0, y: 0, scale: 1 }
  /** The view in which all is seen. */
  #whole: View = { x: 0, y: 0, scale: 1 }
  #isPlaced = false
  #sought = ''
  /** All is kept in sight until the reader has moved the picture. */
  #isWhole = true
  #pointed: number | undefined
  /** Where keys have gone, in the order of who talks most. */
  #rank = -1
  #pulses: Pulse[] = []
  #frame = 0
  #glide: { from: View; to: View; began: number } | undefined
  readonly #pointers = new Map<number, { x: number; y: number }>()
  #travelled = 0
  #width = 1
  #height = 1

  constructor(stage: HTMLElement, options: PictureOptions) {
    this.#stage = stage
    this.#options = options
    for (const canvas of [this.#base, this.#overlay]) {
      canvas.setAttribute('aria-hidden', 'true')
      stage.append(canvas)
    }
    this.#base.className = 'base'
    this.#colours = this.#readColours()
    this.#worker.onmessage = ({ data }: MessageEvent<FromWorker>) => this.#hear(data)
    this.#worker.onerror = () => options.onFailure()
    this.#resizes = new ResizeObserver(() => this.#resize())
    this.#resizes.observe(stage)
    this.#resize()
    const { signal } = this.#abort
    this.#dark.addEventListener('change', () => this.#recolour(), { signal })
    this.#still.addEventListener(
      'change',
      () => this.#tell({ kind: 'motion', isStill: this.#still.matches }),
      {
        signal,
      },
    )
    this.#tell({ kind: 'motion', isStill: this.#still.matches })
    this.#listen(signal)
  }

  close(): void {
    this.#abort.abort()
    this.#resizes.disconnect()
    this.#worker.terminate()
    cancelAnimationFrame(this.#frame)
    this.#base.remove()
    this.#overlay.remove()
  }

  /** @param centre the one whose neighbourhood it is */
  show(network: Network, centre: string | undefined): void {
    const old = this.#pointed === undefined ? undefined : this.#graph.nodes[this.#pointed]?.address
    const gone =
      this.#rank < 0 ? undefined : this.#graph.nodes[this.#bySize[this.#rank] ?? -1]?.address
    this.#graph = toGraph(network)
    const { agents, nodes, sizes, indexOf, one, other, weights } = this.#graph
    this.#bySize = [...nodes.keys()].sort((a, b) => at(sizes, b) - at(sizes, a) || a - b)
    this.#pointed = old === undefined ? undefined : indexOf.get(old)
    this.#rank = gone === undefined ? -1 : this.#bySize.indexOf(indexOf.get(gone) ?? -1)
    this.#pulses = []
    if (this.#centre !== centre) this.#isWhole = true
    this.#centre = centre
    this.#places = new Float32Array(2 * agents).fill(Number.NaN)
    this.#groups = new Uint8Array(agents).fill(255)
    nodes.forEach(({ address }, index) => {
      const place = remembered.get(address)
      if (!place) return
      this.#places[2 * index] = place[0]
      this.#places[2 * index + 1] = place[1]
      this.#groups[index] = place[2]
    })
    const isAnew =
      centre === undefined && pairsWhenArranged > 0 && one.length >= GROWN * pairsWhenArranged
    if (centre === undefined && (isAnew || pairsWhenArranged === 0)) pairsWhenArranged = one.length
    this.#tell({
      kind: 'graph',
      links: { agents, one, other, weights },
      sizes,
      places: this.#places,
      colours: this.#groups,
      centre: centre === undefined ? undefined : indexOf.get(centre),
      isAnew,
    })
    if (old !== undefined) this.#tellPointed(false)
    this.#stage.dataset.agents = String(agents)
    this.#stage.dataset.settled = 'false'
  }

  /** Shows those more clearly whose address has it; one alone comes into the middle. */
  find(text: string): void {
    const { nodes } = this.#graph
    const matches =
      text === ''
        ? []
        : nodes.flatMap(({ address }, index) => (address.includes(text) ? [index] : []))
    this.#found =
      text === ''
        ? undefined
        : Uint8Array.from(nodes, ({ address }) => (address.includes(text) ? 1 : 0))
    const [only] = matches
    if (text !== this.#sought && matches.length === 1 && only !== undefined) this.#goTo(only)
    this.#sought = text
    this.#look()
  }

  /** A message that was just sent. */
  pulse(events: readonly LogEvent[]): void {
    if (this.#still.matches) return
    const { indexOf } = this.#graph
    for (const { type, data } of events) {
      if (type !== 'message_sent' || this.#pulses.length >= MOST_PULSES) continue
      const from = indexOf.get(String(data.from))
      const to = indexOf.get(String(data.to))
      if (from === undefined || to === undefined || from === to) continue
      // Those that come together do not move as one.
      this.#pulses.push({ from, to, began: performance.now() + 20 * this.#pulses.length })
    }
    this.#plan()
  }

  zoom(steps: number): void {
    const scale = this.#bounded(this.#view.scale * ZOOM_STEP ** steps)
    this.#glideTo({ ...this.#view, scale })
  }

  showWhole(): void {
    this.#isWhole = true
    this.#glideTo(this.#whole)
  }

  arrange(): void {
    pairsWhenArranged = this.#graph.one.length
    this.#isWhole = true
    this.#stage.dataset.settled = 'false'
    this.#tell({ kind: 'arrange' })
  }

  #tell(message: ToWorker): void {
    this.#worker.postMessage(message)
  }

  #hear(message: FromWorker): void {
    if (message.kind === 'picture') {
      this.#drawn = message.view
      this.#base.width = message.bitmap.width
      this.#base.height = message.bitmap.height
      this.#base.getContext('bitmaprenderer')?.transferFromImageBitmap(message.bitmap)
      this.#stage.dataset.drawn = 'true'
      this.#plan()
      return
    }
    // Of a network that is not shown any more.
    if (message.places.length !== 2 * this.#graph.agents) return
    this.#places = message.places
    this.#groups = message.colours
    this.#isPlaced = true
    if (this.#centre === undefined) this.#remember()
    this.#whole = this.#wholeView()
    if (this.#isWhole) this.#view = this.#whole
    if (message.isSettled) this.#stage.dataset.settled = 'true'
    this.#look()
  }

  #remember(): void {
    if (remembered.size > MOST_REMEMBERED) remembered.clear()
    this.#graph.nodes.forEach(({ address }, index) => {
      remembered.set(address, [
        at(this.#places, 2 * index),
        at(this.#places, 2 * index + 1),
        at(this.#groups, index),
      ])
    })
  }

  #wholeView(): View {
    let [left, right, top, bottom] = [Infinity, -Infinity, Infinity, -Infinity]
    for (let index = 0; index < this.#places.length; index += 2) {
      left = Math.min(left, at(this.#places, index))
      right = Math.max(right, at(this.#places, index))
      top = Math.min(top, at(this.#places, index + 1))
      bottom = Math.max(bottom, at(this.#places, index + 1))
    }
    if (!(right >= left)) return { x: 0, y: 0, scale: 1 }
    if (this.#centre !== undefined) {
      // The one is in the middle.
      right = Math.max(right, -left)
      bottom = Math.max(bottom, -top)
      left = -right
      top = -bottom
    }
    const across = (this.#width - 2 * BORDER) / Math.max(right - left, 1)
    const down = (this.#height - 2 * BORDER) / Math.max(bottom - top, 1)
    return {
      x: (left + right) / 2,
      y: (top + bottom) / 2,
      scale: Math.max(1e-6, Math.min(across, down, 4)),
    }
  }

  #bounded(scale: number): number {
    return Math.min(MOST_ZOOM * this.#whole.scale, Math.max(LEAST_ZOOM * this.#whole.scale, scale))
  }

  /** Radius of the largest dot: by the room that each has, and more where the reader is nearer. */
  #unit(): number {
    const room = Math.sqrt((this.#width * this.#height) / Math.max(1, this.#graph.agents))
    const zoom = Math.max(0.6, Math.sqrt(this.#view.scale / this.#whole.scale))
    return Math.min(26, Math.min(13, Math.max(2, 0.2 * room)) * zoom)
  }

  #readColours(): Colours {
    const style = getComputedStyle(this.#stage)
    const of = (name: string) => style.getPropertyValue(`--${name}`).trim() || style.color
    return {
      ground: of('surface'),
      line: of('lines'),
      text: of('text'),
      message: of('message'),
      accent: of('accent'),
      font: style.fontFamily,
      groups: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 'other'].map((name) => of(`group-${name}`)),
    }
  }

  #recolour(): void {
    this.#colours = this.#readColours()
    this.#tellLook()
    this.#look()
  }

  #tellLook(): void {
    const ratio = devicePixelRatio
    stretch ??= Math.min(1.4, Math.max(0.5, (1.1 * this.#height) / this.#width))
    this.#tell({
      kind: 'look',
      look: { width: this.#width, height: this.#height, ratio, stretch, colours: this.#colours },
    })
  }

  #resize(): void {
    const { clientWidth, clientHeight } = this.#stage
    this.#width = Math.max(1, clientWidth)
    this.#height = Math.max(1, clientHeight)
    this.#overlay.width = Math.round(this.#width * devicePixelRatio)
    this.#overlay.height = Math.round(this.#height * devicePixelRatio)
    this.#whole = this.#wholeView()
    if (this.#isWhole) this.#view = this.#whole
    this.#tellLook()
    this.#look()
  }

  /** The view has changed: at once as far as what is drawn reaches, and drawn anew. */
  #look(): void {
    // Before anybody has a place there is nothing to draw.
    if (!this.#isPlaced) return
    this.#tell({ kind: 'view', view: this.#view, unit: this.#unit(), found: this.#found })
    this.#plan()
  }

  #plan(): void {
    this.#frame ||= requestAnimationFrame((now) => {
      this.#frame = 0
      this.#paint(now)
    })
  }

  #paint(now: number): void {
    if (this.#glide) {
      const { from, to, began } = this.#glide
      const part = Math.min(1, Math.max(0, (now - began) / GLIDE_MS))
      const eased = 1 - (1 - part) ** 3
      this.#view = {
        x: from.x + (to.x - from.x) * eased,
        y: from.y + (to.y - from.y) * eased,
        scale: from.scale * (to.scale / from.scale) ** eased,
      }
      if (part === 1) this.#glide = undefined
      this.#look()
    }
    const { x, y, scale } = this.#view
    const zoom = scale / this.#drawn.scale
    const [right, down] = [(this.#drawn.x - x) * scale, (this.#drawn.y - y) * scale]
    this.#base.style.transform = `translate(${right}px, ${down}px) scale(${zoom})`
    this.#paintOverlay(now)
    if (this.#pulses.length > 0) this.#plan()
  }

  #paintOverlay(now: number): void {
    const context = this.#overlay.getContext('2d')
    if (!context) return
    const ratio = this.#overlay.width / this.#width
    context.setTransform(ratio, 0, 0, ratio, 0, 0)
    context.clearRect(0, 0, this.#width, this.#height)
    const unit = this.#unit()
    if (this.#pointed !== undefined) this.#paintPointed(context, this.#pointed, unit)
    this.#paintPulses(context, now)
    this.#paintLabels(context, unit)
  }

  #paintPointed(context: CanvasRenderingContext2D, pointed: number, unit: number): void {
    const { one, other, weights, starts, pairs, sizes } = this.#graph
    const [x, y] = this.#onScreen(pointed)
    context.strokeStyle = this.#colours.accent
    context.globalAlpha = 0.7
    for (let place = at(starts, pointed); place < at(starts, pointed + 1); place++) {
      const pair = at(pairs, place)
      const [toX, toY] = this.#onScreen(at(one, pair) === pointed ? at(other, pair) : at(one, pair))
      context.lineWidth = 0.8 + 2.4 * at(weights, pair)
      context.beginPath()
      context.moveTo(x, y)
      context.lineTo(toX, toY)
      context.stroke()
    }
    context.globalAlpha = 1
    context.lineWidth = 2.5
    context.beginPath()
    context.arc(x, y, radiusOf(at(sizes, pointed), unit) + 3.5, 0, 2 * Math.PI)
    context.stroke()
  }

  #paintPulses(context: CanvasRenderingContext2D, now: number): void {
    this.#pulses = this.#pulses.filter(({ began }) => now - began < PULSE_MS)
    this.#stage.dataset.pulses = String(this.#pulses.length)
    for (const { from, to, began } of this.#pulses) {
      const part = (now - began) / PULSE_MS
      if (part < 0) continue
      const [fromX, fromY] = this.#onScreen(from)
      const [toX, toY] = this.#onScreen(to)
      // On its way for two thirds of the time; then it has arrived.
      const way = Math.min(1, part * 1.5)
      const eased = way * way * (3 - 2 * way)
      const [x, y] = [fromX + (toX - fromX) * eased, fromY + (toY - fromY) * eased]
      context.strokeStyle = this.#colours.message
      context.fillStyle = this.#colours.message
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
    context.globalAlpha = 1
  }

  /** Of those in sight who talk most, as far as there is room; and of whom the reader looks for. */
  #paintLabels(context: CanvasRenderingContext2D, unit: number): void {
    const { nodes, sizes } = this.#graph
    const taken = new Set<number>()
    const zoom = this.#view.scale / this.#whole.scale
    const few =
      this.#centre === undefined ? Math.max(5, (FEW_LABELS * this.#width) / 1_100) : MOST_LABELS
    const most = Math.min(MOST_LABELS, few * Math.max(1, zoom ** 2))
    const columns = Math.ceil(this.#width / LABEL_WIDTH) + 2
    let labels = 0
    context.font = `12px ${this.#colours.font}`
    context.textAlign = 'center'
    context.textBaseline = 'top'
    context.lineJoin = 'round'
    const label = (index: number, isWanted: boolean) => {
      const address = nodes[index]?.address
      const [x, y] = this.#onScreen(index)
      const below = y + radiusOf(at(sizes, index), unit) + 3
      if (
        address === undefined ||
        !(x > 0 && x < this.#width && y > 0 && below < this.#height - 12)
      )
        return
      const cell = Math.floor(x / LABEL_WIDTH) + columns * Math.floor(below / LABEL_HEIGHT)
      const near = [
        0,
        1,
        -1,
        columns,
        -columns,
        columns + 1,
        columns - 1,
        1 - columns,
        -columns - 1,
      ]
      if (!isWanted && near.some((step) => taken.has(cell + step))) return
      taken.add(cell)
      labels += 1
      const text = shortAddress(address)
      const half = LABEL_WIDTH / 2 - 6
      const middle = Math.min(this.#width - half, Math.max(half, x))
      context.lineWidth = 4
      context.strokeStyle = this.#colours.ground
      context.strokeText(text, middle, below)
      context.fillStyle = isWanted ? this.#colours.accent : this.#colours.text
      context.fillText(text, middle, below)
    }
    const [first = -1] = [this.#pointed]
    if (first >= 0) label(first, true)
    for (const index of this.#bySize) {
      if (labels >= most) break
      if (index !== first && (!this.#found || this.#found[index] === 1)) label(index, false)
    }
  }

  #onScreen(index: number): readonly [number, number] {
    const { x, y, scale } = this.#view
    return [
      (at(this.#places, 2 * index) - x) * scale + this.#width / 2,
      (at(this.#places, 2 * index + 1) - y) * scale + this.#height / 2,
    ]
  }

  /** The agent at a place of the picture, or very near to it. */
  #at(x: number, y: number): number | undefined {
    const unit = this.#unit()
    let nearest: number | undefined
    let least = 0
    for (let index = 0; index < this.#graph.agents; index++) {
      const [itsX, itsY] = this.#onScreen(index)
      const beyond =
        Math.hypot(itsX - x, itsY - y) -
        Math.max(NEAR_PIXELS, radiusOf(at(this.#graph.sizes, index), unit))
      if (beyond < least) {
        least = beyond
        nearest = index
      }
    }
    return nearest
  }

  #point(index: number | undefined, isByKeys = false): void {
    if (index === this.#pointed && !isByKeys) return
    this.#pointed = index
    this.#stage.classList.toggle('pointing', index !== undefined)
    this.#tellPointed(isByKeys)
    this.#plan()
  }

  #tellPointed(isByKeys: boolean): void {
    this.#options.onPoint(this.#pointed === undefined ? '' : this.#wordsOf(this.#pointed), isByKeys)
  }

  #wordsOf(index: number): string {
    const { nodes, starts, pairs, one, forth, back } = this.#graph
    const node = nodes[index]
    if (!node) return ''
    const its = pairs.subarray(at(starts, index), at(starts, index + 1))
    if (this.#centre !== undefined && node.address !== this.#centre) {
      // In a neighbourhood all pairs are with the one in the middle.
      const pair = its[0] ?? 0
      const [to, from] =
        at(one, pair) === index
          ? [at(back, pair), at(forth, pair)]
          : [at(forth, pair), at(back, pair)]
      return `${node.address}: got ${counted(to, 'message')} from ${shortAddress(this.#centre)}, and sent it ${count(from)}`
    }
    const said = `${node.address}: sent ${count(node.messages_sent)}, received ${counted(node.messages_received, 'message')}`
    return messagesOf(node) === 0 ? said : `${said}; talks to ${counted(its.length, 'agent')} here`
  }

  #open(index: number | undefined): void {
    const address = index === undefined ? undefined : this.#graph.nodes[index]?.address
    if (address !== undefined) this.#options.onOpen(address)
  }

  #goTo(index: number): void {
    const scale = this.#bounded(Math.max(this.#view.scale, 1.5 * this.#whole.scale))
    this.#isWhole = false
    this.#point(index, true)
    this.#glideTo({ x: at(this.#places, 2 * index), y: at(this.#places, 2 * index + 1), scale })
  }

  #glideTo(to: View): void {
    if (this.#still.matches) {
      this.#view = to
      this.#glide = undefined
    } else {
      this.#glide = { from: this.#view, to, began: performance.now() }
    }
    this.#look()
  }

  #pan(x: number, y: number): void {
    this.#isWhole = false
    const { scale } = this.#view
    this.#view = { x: this.#view.x - x / scale, y: this.#view.y - y / scale, scale }
  }

  /** What is at that place of the picture stays there. */
  #zoomAt(x: number, y: number, factor: number): void {
    this.#isWhole = false
    this.#glide = undefined
    const { scale } = this.#view
    const next = this.#bounded(scale * factor)
    const [right, down] = [x - this.#width / 2, y - this.#height / 2]
    this.#view = {
      x: this.#view.x + right / scale - right / next,
      y: this.#view.y + down / scale - down / next,
      scale: next,
    }
    this.#look()
  }

  #listen(signal: AbortSignal): void {
    const stage = this.#stage
    stage.addEventListener('pointerdown', (event) => this.#pressed(event), { signal })
    stage.addEventListener('pointermove', (event) => this.#moved(event), { signal })
    for (const name of ['pointerup', 'pointercancel'] as const) {
      stage.addEventListener(name, (event) => this.#released(event), { signal })
    }
    stage.addEventListener('pointerleave', () => this.#point(undefined), { signal })
    stage.addEventListener('keydown', (event) => this.#key(event), { signal })
    stage.addEventListener(
      'wheel',
      (event) => {
        event.preventDefault()
        const { x, y } = this.#placeOf(event)
        // Lines and pages, where a mouse counts so.
        const pixels = event.deltaY * ([1, 16, this.#height][event.deltaMode] ?? 1)
        this.#zoomAt(x, y, Math.exp(-Math.max(-240, Math.min(240, pixels)) / 400))
      },
      { signal, passive: false },
    )
  }

  #placeOf({ clientX, clientY }: MouseEvent): { x: number; y: number } {
    const box = this.#stage.getBoundingClientRect()
    return {
      x: clientX - box.left - this.#stage.clientLeft,
      y: clientY - box.top - this.#stage.clientTop,
    }
  }

  #pressed(event: PointerEvent): void {
    if (event.button !== 0) return
    this.#stage.setPointerCapture(event.pointerId)
    this.#pointers.set(event.pointerId, this.#placeOf(event))
    this.#travelled = this.#pointers.size > 1 ? CLICK_PIXELS : 0
    this.#glide = undefined
  }

  #moved(event: PointerEvent): void {
    const before = this.#pointers.get(event.pointerId)
    const now = this.#placeOf(event)
    if (!before) {
      this.#point(this.#at(now.x, now.y))
      return
    }
    const [other] = [...this.#pointers]
      .filter(([id]) => id !== event.pointerId)
      .map(([, place]) => place)
    this.#pointers.set(event.pointerId, now)
    this.#travelled += Math.hypot(now.x - before.x, now.y - before.y)
    if (this.#travelled < CLICK_PIXELS) return
    if (other) {
      const wide = (place: { x: number; y: number }) =>
        Math.max(1, Math.hypot(place.x - other.x, place.y - other.y))
      this.#zoomAt((now.x + other.x) / 2, (now.y + other.y) / 2, wide(now) / wide(before))
    }
    this.#pan((now.x - before.x) / this.#pointers.size, (now.y - before.y) / this.#pointers.size)
    this.#look()
  }

  #released(event: PointerEvent): void {
    if (!this.#pointers.delete(event.pointerId) || event.type === 'pointercancel') return
    const { x, y } = this.#placeOf(event)
    if (this.#travelled < CLICK_PIXELS) this.#open(this.#at(x, y))
  }

  #key(event: KeyboardEvent): void {
    if (event.ctrlKey || event.metaKey || event.altKey) return
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key
    const action = {
      ArrowLeft: () => this.#panByKeys(PAN_STEP, 0),
      ArrowRight: () => this.#panByKeys(-PAN_STEP, 0),
      ArrowUp: () => this.#panByKeys(0, PAN_STEP),
      ArrowDown: () => this.#panByKeys(0, -PAN_STEP),
      '+': () => this.zoom(1),
      '=': () => this.zoom(1),
      '-': () => this.zoom(-1),
      '0': () => this.showWhole(),
      n: () => this.#next(1),
      p: () => this.#next(-1),
      Enter: () => this.#open(this.#pointed),
      Escape: () => this.#options.onLeave(),
    }[key]
    if (!action) return
    event.preventDefault()
    action()
  }

  #panByKeys(x: number, y: number): void {
    const { scale } = this.#view
    const from = this.#glide?.to ?? this.#view
    this.#isWhole = false
    this.#glideTo({ ...from, x: from.x - x / scale, y: from.y - y / scale })
  }

  #next(step: number): void {
    const many = this.#bySize.length
    if (many === 0) return
    this.#rank = this.#rank < 0 && step < 0 ? many - 1 : (this.#rank + step + many) % many
    const index = this.#bySize[this.#rank]
    if (index !== undefined) this.#goTo(index)
  }
}
