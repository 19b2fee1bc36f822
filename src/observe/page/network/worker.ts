/** Places agents and draws them, in a thread of its own: the page stays free for who moves it. */
import { Drawing } from './drawing.ts'
import { Forces } from './forces.ts'
import { at, degreesOf, type Links } from './graph.ts'
import { adoptColours, coloursOf, groupsOf, parted, UNKNOWN } from './groups.ts'
import type { FromWorker, Look, ToWorker, View } from './messages.ts'
import { placeAround, placeInRings, placeNew, startingPlaces } from './places.ts'

/** Steps of the forces: the fewer, the more there is to move. */
const MOST_STEPS = 400
const FEWEST_STEPS = 90
const STEPS_OF_NEW = 40
/** Steps are taken for so long before what came is looked at. */
const TURN_MS = 24
/**
 * Places are shown while they move this often at most, and so that drawing takes less than a third.
 */
const SHOW_MS = 60

const drawing = new Drawing()
let links: Links = {
  agents: 0,
  one: new Uint32Array(0),
  other: new Uint32Array(0),
  weights: new Float32Array(0),
}
let sizes: Float32Array = new Float32Array(0)
/** On the plane of the forces; on the picture they are stretched. */
let places: Float32Array = new Float32Array(0)
let colours: Uint8Array = new Uint8Array(0)
let degree: Float32Array = new Float32Array(0)
let forces: Forces | undefined
let stepsLeft = 0
/** All move, not newcomers alone. */
let isArranging = false
let isStill = false
let look: Look | undefined
let view: View | undefined
let unit = 4
let found: Uint8Array | undefined
let stretch = 1
let isStale = false
let shownAt = 0
let drawMs = 0
let isPlanned = false

self.onmessage = ({ data }: MessageEvent<ToWorker>) => {
  switch (data.kind) {
    case 'graph':
      take(data)
      break
    case 'look':
      look = data.look
      stretch = look.stretch
      break
    case 'view':
      ;({ view, unit, found } = data)
      break
    case 'arrange':
      arrange(false)
      show(false)
      break
    case 'motion':
      isStill = data.isStill
  }
  isStale = true
  plan()
}

function take({ centre, isAnew, ...graph }: Extract<ToWorker, { kind: 'graph' }>): void {
  ;({ links, sizes, colours } = graph)
  places = stretched(graph.places, 1 / stretch)
  degree = degreesOf(links)
  forces = undefined
  found = undefined
  isArranging = false
  if (centre !== undefined) {
    // The heaviest pair comes first.
    const ranks = new Set(
      Array.from(links.one, (one, pair) => (one === centre ? at(links.other, pair) : one)),
    )
    places = placeInRings(links.agents, centre, [...ranks])
    // Who was not seen among all before has no group yet.
    colours = colours.map((colour) => (colour === UNKNOWN ? 0 : colour))
  } else {
    const talking = degree.filter((its) => its > 0).length
    const newcomers = degree.filter(
      (its, agent) => its > 0 && Number.isNaN(places[2 * agent]),
    ).length
    if (newcomers > talking / 2) arrange(false)
    else if (isAnew) arrange(true)
    else letIn(newcomers)
  }
  show(forces === undefined)
}

/** Newcomers find their places among the others, who stay where they are. */
function letIn(newcomers: number): void {
  const isNew = placeNew(links, places)
  placeAround(degree, places)
  adoptColours(links, colours)
  if (newcomers === 0) return
  forces = new Forces(links, places, isNew)
  stepsLeft = STEPS_OF_NEW
}

/** All find their places anew: from where their group puts them, or from where they are. */
function arrange(isGentle: boolean): void {
  const groups = groupsOf(links)
  colours = coloursOf(groups, colours)
  const its = parted(links, groups)
  if (isGentle) placeNew(links, places)
  else places = startingPlaces(its, groups)
  forces = new Forces(its, places)
  stepsLeft = Math.round(
    Math.min(MOST_STEPS, Math.max(FEWEST_STEPS, 600_000 / (links.agents + links.one.length))),
  )
  isArranging = true
}

function show(isSettled: boolean): void {
  if (isArranging) placeAround(degree, places, true)
  shownAt = performance.now()
  isStale = true
  post({ kind: 'places', places: stretched(places, stretch), colours: colours.slice(), isSettled })
}

const stretched = (its: Float32Array, by: number) =>
  its.map((place, index) => (index % 2 === 0 ? place : place * by))

function post(message: FromWorker, transfer: Transferable[] = []): void {
  self.postMessage(message, { transfer })
}

/** The next turn, after what has come meanwhile. */
function plan(): void {
  if (isPlanned) return
  isPlanned = true
  setTimeout(turn)
}

function turn(): void {
  isPlanned = false
  if (isStale && look && view) draw(look, view)
  // Nobody has seen the first places yet: the picture comes before they move.
  if (forces === undefined || view === undefined) return
  const began = performance.now()
  while (stepsLeft > 0 && performance.now() - began < TURN_MS) {
    forces.step()
    stepsLeft -= 1
  }
  if (stepsLeft === 0) {
    forces = undefined
    show(true)
    isArranging = false
  } else if (!isStill && performance.now() - shownAt > Math.max(SHOW_MS, 3 * drawMs)) {
    show(false)
  }
  plan()
}

function draw(its: Look, of: View): void {
  const began = performance.now()
  isStale = false
  const bitmap = drawing.draw(
    { links, sizes, places: stretched(places, stretch), colours, found, unit },
    of,
    its,
  )
  drawMs = performance.now() - began
  post({ kind: 'picture', bitmap, view: of }, [bitmap])
}
