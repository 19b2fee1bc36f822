/**
 * Draws the network into a bitmap: lines as a haze that grows denser where there are many, the
 * heaviest as strokes, agents as dots.
 */
import { at, type Links } from './graph.ts'
import { type Look, MARGIN, radiusOf, type View } from './messages.ts'

/** Pairs drawn as strokes with a width of their own, the heaviest ones; the others are haze. */
const MOST_STROKES = 700
/** Strokes of the same width and colour are one path. */
const WIDTHS = 6
/** Of a line that has the length of the picture, in the haze: near ones are what shows groups. */
const FAR_LINES = 0.35
const FAINT = 0.12
/** A bitmap has so many pixels at most: beyond it a screen's finer pixels are not used. */
const MOST_PIXELS = 9_000_000

export interface Scene {
  readonly links: Links
  readonly sizes: Float32Array
  readonly places: Float32Array
  readonly colours: Uint8Array
  readonly found: Uint8Array | undefined
  /** Radius of the largest dot, in pixels of CSS. */
  readonly unit: number
}

export class Drawing {
  readonly #canvas = new OffscreenCanvas(1, 1)
  readonly #context: OffscreenCanvasRenderingContext2D
  #haze = new Float32Array(1)
  #image: ImageData | undefined

  constructor() {
    const context = this.#canvas.getContext('2d')
    if (!context) throw new Error('no 2D canvas')
    this.#context = context
  }

  draw(scene: Scene, view: View, look: Look): ImageBitmap {
    const cssWidth = look.width * (1 + 2 * MARGIN)
    const cssHeight = look.height * (1 + 2 * MARGIN)
    const ratio = Math.min(look.ratio, Math.sqrt(MOST_PIXELS / (cssWidth * cssHeight)))
    const width = Math.max(1, Math.round(cssWidth * ratio))
    const height = Math.max(1, Math.round(cssHeight * ratio))
    if (this.#canvas.width !== width || this.#canvas.height !== height) {
      this.#canvas.width = width
      this.#canvas.height = height
      this.#haze = new Float32Array(width * height)
    }
    const { places } = scene
    const points = new Float32Array(places.length)
    const scale = view.scale * ratio
    for (let index = 0; index < places.length; index += 2) {
      points[index] = (at(places, index) - view.x) * scale + width / 2
      points[index + 1] = (at(places, index + 1) - view.y) * scale + height / 2
    }
    this.#context.clearRect(0, 0, width, height)
    const strokes = this.#drawHaze(scene, points, look)
    this.#drawStrokes(scene, points, strokes, look, ratio)
    this.#drawDots(scene, points, look, ratio)
    return this.#canvas.transferToImageBitmap()
  }

  /** @returns the pairs that are left to be drawn as strokes */
  #drawHaze({ links, found }: Scene, points: Float32Array, look: Look): readonly number[] {
    const { one, other, weights } = links
    const { width, height } = this.#canvas
    const haze = this.#haze
    haze.fill(0)
    const strokes: number[] = []
    let lines = 0
    for (let pair = 0; pair < one.length; pair++) {
      const [a, b] = [at(one, pair), at(other, pair)]
      if (found && found[a] !== 1 && found[b] !== 1) continue
      const line = clip(points, 2 * a, 2 * b, width, height)
      if (!line) continue
      if (strokes.length < MOST_STROKES) {
        strokes.push(pair)
        continue
      }
      lines += 1
      const length = Math.hypot(
        at(points, 2 * a) - at(points, 2 * b),
        at(points, 2 * a + 1) - at(points, 2 * b + 1),
      )
      const nearness = Math.max(FAR_LINES, 1 - length / Math.max(width, height))
      trace(haze, width, height, line, (0.3 + 0.7 * at(weights, pair)) * nearness)
    }
    if (lines === 0) return strokes
    // The more lines, the fainter one of them.
    const single = Math.min(0.5, Math.max(0.08, 2.6 / (strokes.length + lines) ** 0.3))
    const image =
      this.#image?.width === width && this.#image.height === height
        ? this.#image
        : new ImageData(width, height)
    this.#image = image
    paint(haze, new Uint32Array(image.data.buffer), rgbOf(this.#context, look.colours.line), single)
    this.#context.putImageData(image, 0, 0)
    return strokes
  }

  #drawStrokes(
    { links, found, colours }: Scene,
    points: Float32Array,
    strokes: readonly number[],
    look: Look,
    ratio: number,
  ): void {
    const { one, other, weights } = links
    const context = this.#context
    const { groups, line } = look.colours
    const batches = new Map<
      string,
      { colour: string; width: number; isFaint: boolean; pairs: number[] }
    >()
    const [widest, most] =
      strokes.length < 80 ? [3.4, 0.5] : strokes.length < MOST_STROKES ? [2.2, 0.4] : [0.9, 0.25]
    for (const pair of strokes.toReversed()) {
      const [a, b] = [at(one, pair), at(other, pair)]
      const isFaint = found !== undefined && !(found[a] === 1 && found[b] === 1)
      const colour = colours[a] === colours[b] ? (groups[at(colours, a)] ?? line) : line
      const step = Math.ceil(at(weights, pair) * WIDTHS)
      const name = `${step} ${colour} ${isFaint}`
      const batch = batches.get(name) ?? { colour, width: step / WIDTHS, isFaint, pairs: [] }
      batch.pairs.push(pair)
      batches.set(name, batch)
    }
    context.lineCap = 'round'
    for (const { colour, width, isFaint, pairs } of batches.values()) {
      context.strokeStyle = colour
      context.lineWidth = ratio * (0.6 + widest * width ** 2)
      context.globalAlpha = isFaint ? FAINT : 0.2 + most * width
      context.beginPath()
      for (const pair of pairs) {
        const [a, b] = [2 * at(one, pair), 2 * at(other, pair)]
        context.moveTo(at(points, a), at(points, a + 1))
        context.lineTo(at(points, b), at(points, b + 1))
      }
      context.stroke()
    }
    context.globalAlpha = 1
  }

  #drawDots(
    { sizes, colours, found, unit, links }: Scene,
    points: Float32Array,
    look: Look,
    ratio: number,
  ): void {
    const context = this.#context
    const { width, height } = this.#canvas
    const batches = look.colours.groups.map(() => ({
      faint: [] as number[],
      clear: [] as number[],
    }))
    for (let agent = 0; agent < links.agents; agent++) {
      const [x, y] = [at(points, 2 * agent), at(points, 2 * agent + 1)]
      const edge = unit * ratio
      if (!(x > -edge && x < width + edge && y > -edge && y < height + edge)) continue
      const batch = batches[at(colours, agent)] ?? batches.at(-1)
      if (found && found[agent] !== 1) batch?.faint.push(agent)
      else batch?.clear.push(agent)
    }
    context.strokeStyle = look.colours.ground
    batches.forEach(({ faint, clear }, index) => {
      context.fillStyle = look.colours.groups[index] ?? look.colours.line
      for (const [agents, alpha] of [
        [faint, FAINT],
        [clear, 1],
      ] as const) {
        context.globalAlpha = alpha
        for (const chunk of chunks(agents, 400)) {
          context.beginPath()
          for (const agent of chunk) {
            const radius = ratio * radiusOf(at(sizes, agent), unit)
            const [x, y] = [at(points, 2 * agent), at(points, 2 * agent + 1)]
            context.moveTo(x + radius, y)
            context.arc(x, y, radius, 0, 2 * Math.PI)
          }
          if (unit > 4 && alpha === 1) {
            context.lineWidth = 2 * ratio
            context.stroke()
          }
          context.fill()
        }
      }
    })
    context.globalAlpha = 1
  }
}

function* chunks(list: readonly number[], size: number): Generator<readonly number[]> {
  for (let from = 0; from < list.length; from += size) yield list.slice(from, from + size)
}

type Line = readonly [number, number, number, number]

/** What of a line is within the picture (Y. Liang and B. Barsky, 1984); undefined if nothing is. */
function clip(
  points: Float32Array,
  a: number,
  b: number,
  width: number,
  height: number,
): Line | undefined {
  const [x0, y0] = [at(points, a), at(points, a + 1)]
  const [dx, dy] = [at(points, b) - x0, at(points, b + 1) - y0]
  let [from, to] = [0, 1]
  for (const [step, distance] of [
    [-dx, x0],
    [dx, width - 1 - x0],
    [-dy, y0],
    [dy, height - 1 - y0],
  ] as const) {
    if (step === 0) {
      if (distance < 0) return undefined
      continue
    }
    const cut = distance / step
    if (step < 0) from = Math.max(from, cut)
    else to = Math.min(to, cut)
  }
  // Also where a place is no number.
  return from < to ? [x0 + from * dx, y0 + from * dy, x0 + to * dx, y0 + to * dy] : undefined
}

/**
 * Adds a line to the haze, a pixel at a time along its longer side, shared by the two pixels that
 * it passes between.
 */
function trace(
  haze: Float32Array,
  width: number,
  height: number,
  [x0, y0, x1, y1]: Line,
  weight: number,
): void {
  const dx = x1 - x0
  const dy = y1 - y0
  const isFlat = Math.abs(dx) >= Math.abs(dy)
  const steps = Math.max(1, Math.ceil(isFlat ? Math.abs(dx) : Math.abs(dy)))
  const [stepX, stepY] = [dx / steps, dy / steps]
  const next = isFlat ? width : 1
  const last = width * height - 1 - next
  let [x, y] = [x0, y0]
  for (let step = 0; step <= steps; step++) {
    const column = isFlat ? Math.round(x) : Math.floor(x)
    const row = isFlat ? Math.floor(y) : Math.round(y)
    const share = isFlat ? y - row : x - column
    const place = row * width + column
    if (place >= 0 && place <= last) {
      haze[place] = (haze[place] as number) + weight * (1 - share)
      haze[place + next] = (haze[place + next] as number) + weight * share
    }
    x += stepX
    y += stepY
  }
}

/** Haze as pixels: `one` is how much a line covers, and more lines cover more, but never all. */
function paint(
  haze: Float32Array,
  pixels: Uint32Array,
  [red, green, blue]: readonly [number, number, number],
  one: number,
): void {
  const steps = 256
  const range = 24
  const table = new Uint32Array(steps + 1)
  const colour = (blue << 16) | (green << 8) | red
  for (let step = 0; step <= steps; step++) {
    const alpha = 0.85 * (1 - Math.exp((-one * step * range) / steps / 0.85))
    table[step] = ((Math.round(255 * alpha) << 24) | colour) >>> 0
  }
  const factor = steps / range
  for (let place = 0; place < pixels.length; place++) {
    const value = haze[place] as number
    pixels[place] = value > 0 ? (table[Math.min(steps, Math.ceil(value * factor))] as number) : 0
  }
}

function rgbOf(
  context: OffscreenCanvasRenderingContext2D,
  colour: string,
): readonly [number, number, number] {
  context.fillStyle = colour
  // A canvas says an opaque colour as #rrggbb.
  const digits = Number.parseInt(String(context.fillStyle).slice(1), 16)
  return [(digits >> 16) & 255, (digits >> 8) & 255, digits & 255]
}
