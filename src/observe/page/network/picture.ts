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
import { Camera } from './camera.ts'
import { listen } from './gestures.ts'
import { at, type Graph, messagesOf, toGraph } from './graph.ts'
import { type Colours, type FromWorker, radiusOf, type ToWorker, type View } from './messages.ts'
import { Overlay, onScreen } from './overlay.ts'

const ZOOM_STEP = 1.4
const PAN_STEP = 90
/** An agent is pointed at from so far away. */
const NEAR_PIXELS = 9
/** Pairs have doubled since all were placed: they are placed anew, from where they are. */
const GROWN = 2

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

export const isSupported = () => 'OffscreenCanvas' in globalThis && 'Worker' in globalThis

export class Picture {
  readonly #stage: HTMLElement
  readonly #options: PictureOptions
  readonly #base = document.createElement('canvas')
  readonly #overlay = new Overlay()
  readonly #camera = new Camera()
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
  /** Of the bitmap that is shown. */
  #drawn: View = { x: 0, y: 0, scale: 1 }
  #isPlaced = false
  #sought = ''
  #pointed: number | undefined
  /** Where keys have gone, in the order of who talks most. */
  #rank = -1
  #frame = 0

  constructor(stage: HTMLElement, options: PictureOptions) {
    this.#stage = stage
    this.#options = options
    for (const canvas of [this.#base, this.#overlay.canvas]) {
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
    const tellMotion = () => this.#tell({ kind: 'motion', isStill: this.#still.matches })
    this.#dark.addEventListener('change', () => this.#recolour(), { signal })
    this.#still.addEventListener('change', tellMotion, { signal })
    tellMotion()
    stage.addEventListener('keydown', (event) => this.#key(event), { signal })
    listen(
      stage,
      {
        onHover: (x, y) => this.#point(this.#at(x, y)),
        onLeave: () => this.#point(undefined),
        onHold: () => this.#camera.stop(),
        onPan: (x, y) => this.#look(() => this.#camera.pan(x, y)),
        onZoom: (x, y, factor) => this.#look(() => this.#camera.zoomAt(x, y, factor)),
        onClick: (x, y) => this.#open(this.#at(x, y)),
      },
      signal,
    )
  }

  close(): void {
    this.#abort.abort()
    this.#resizes.disconnect()
    this.#worker.terminate()
    cancelAnimationFrame(this.#frame)
    this.#base.remove()
    this.#overlay.canvas.remove()
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
    this.#overlay.forgetPulses()
    if (this.#centre !== centre) this.#camera.isWhole = true
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

  /** Messages that were just sent. */
  pulse(events: readonly LogEvent[]): void {
    if (this.#still.matches) return
    this.#overlay.pulse(events, this.#graph)
    this.#plan()
  }

  zoom(steps: number): void {
    this.#look(() => this.#camera.zoomBy(ZOOM_STEP ** steps, this.#still.matches))
  }

  showWhole(): void {
    this.#look(() => this.#camera.showWhole(this.#still.matches))
  }

  arrange(): void {
    pairsWhenArranged = this.#graph.one.length
    this.#camera.isWhole = true
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
    if (message.isSettled) this.#stage.dataset.settled = 'true'
    this.#look(() => this.#camera.fit(this.#places, this.#centre !== undefined))
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

  /** Radius of the largest dot: by the room that each has, and more where the reader is nearer. */
  #unit(): number {
    const { width, height, zoom } = this.#camera
    const room = Math.sqrt((width * height) / Math.max(1, this.#graph.agents))
    const nearer = Math.max(0.6, Math.sqrt(zoom))
    return Math.min(26, Math.min(13, Math.max(2, 0.2 * room)) * nearer)
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
    const { width, height } = this.#camera
    stretch ??= Math.min(1.4, Math.max(0.5, (1.1 * height) / width))
    this.#tell({
      kind: 'look',
      look: { width, height, ratio: devicePixelRatio, stretch, colours: this.#colours },
    })
  }

  #resize(): void {
    const { clientWidth, clientHeight } = this.#stage
    this.#camera.width = Math.max(1, clientWidth)
    this.#camera.height = Math.max(1, clientHeight)
    this.#overlay.resize(this.#camera.width, this.#camera.height)
    this.#tellLook()
    this.#look(() => this.#camera.fit(this.#places, this.#centre !== undefined))
  }

  /** After `move` the view is another: at once as far as what is drawn reaches, and drawn anew. */
  #look(move: () => void = () => {}): void {
    move()
    // Before anybody has a place there is nothing to draw.
    if (!this.#isPlaced) return
    const { view } = this.#camera
    this.#tell({ kind: 'view', view, unit: this.#unit(), found: this.#found })
    this.#plan()
  }

  #plan(): void {
    this.#frame ||= requestAnimationFrame((now) => {
      this.#frame = 0
      this.#paint(now)
    })
  }

  #paint(now: number): void {
    if (this.#camera.step(now)) this.#look()
    const { x, y, scale } = this.#camera.view
    const zoom = scale / this.#drawn.scale
    const [right, down] = [(this.#drawn.x - x) * scale, (this.#drawn.y - y) * scale]
    this.#base.style.transform = `translate(${right}px, ${down}px) scale(${zoom})`
    this.#overlay.paint(
      {
        graph: this.#graph,
        places: this.#places,
        colours: this.#colours,
        camera: this.#camera,
        unit: this.#unit(),
        bySize: this.#bySize,
        pointed: this.#pointed,
        found: this.#found,
        isNeighbourhood: this.#centre !== undefined,
      },
      now,
    )
    this.#stage.dataset.pulses = String(this.#overlay.pulses)
    if (this.#overlay.pulses > 0) this.#plan()
  }

  /** The agent at a place of the picture, or very near to it. */
  #at(x: number, y: number): number | undefined {
    const unit = this.#unit()
    const scene = { places: this.#places, camera: this.#camera }
    let nearest: number | undefined
    let least = 0
    for (let index = 0; index < this.#graph.agents; index++) {
      const [itsX, itsY] = onScreen(scene, index)
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
    this.#point(index, true)
    const [x, y] = [at(this.#places, 2 * index), at(this.#places, 2 * index + 1)]
    this.#look(() => this.#camera.lookAt(x, y, this.#still.matches))
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
    this.#look(() => this.#camera.glideBy(x, y, this.#still.matches))
  }

  #next(step: number): void {
    const many = this.#bySize.length
    if (many === 0) return
    this.#rank = this.#rank < 0 && step < 0 ? many - 1 : (this.#rank + step + many) % many
    const index = this.#bySize[this.#rank]
    if (index !== undefined) this.#goTo(index)
  }
}
