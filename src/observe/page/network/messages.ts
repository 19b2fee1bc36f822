/** What the page and the worker that places and draws say to each other. */
import type { Links } from './graph.ts'

/** Which part of the plane is seen. */
export interface View {
  /** Of the plane, in the middle of the picture. */
  readonly x: number
  readonly y: number
  /** Pixels of CSS for one unit of the plane. */
  readonly scale: number
}

/** How large the picture is, and how it looks. */
export interface Look {
  /** In pixels of CSS; what is drawn reaches beyond it on each side (`MARGIN`). */
  readonly width: number
  readonly height: number
  /** Pixels of the screen for one of CSS. */
  readonly ratio: number
  /** Places are laid out on a plane whose second coordinate is so much shorter on the picture. */
  readonly stretch: number
  readonly colours: Colours
}

export interface Colours {
  readonly ground: string
  readonly line: string
  readonly text: string
  readonly message: string
  readonly accent: string
  readonly font: string
  /** One for each group with a colour, and one for all others. */
  readonly groups: readonly string[]
}

/**
 * Of width and height, what is drawn beyond each side: so much can be moved in before it is drawn
 * anew.
 */
export const MARGIN = 0.25

/**
 * Of an agent's dot, in pixels of CSS: `size` is how much it talks, 0 to 1, `unit` the radius of
 * the largest.
 */
export const radiusOf = (size: number, unit: number) => unit * (0.32 + 0.68 * size)

export type ToWorker =
  | {
      readonly kind: 'graph'
      readonly links: Links
      readonly sizes: Float32Array
      /** Where agents were, `NaN` for new ones. */
      readonly places: Float32Array
      readonly colours: Uint8Array
      /** Draw rings around this one. */
      readonly centre: number | undefined
      /** All are to find their places anew, from where they are. */
      readonly isAnew: boolean
    }
  | { readonly kind: 'look'; readonly look: Look }
  | {
      readonly kind: 'view'
      readonly view: View
      readonly unit: number
      /** Of each agent 1 where it is shown as found; undefined where all are. */
      readonly found: Uint8Array | undefined
    }
  | { readonly kind: 'arrange' }
  | { readonly kind: 'motion'; readonly isStill: boolean }

export type FromWorker =
  | {
      readonly kind: 'places'
      /** x, y, x, y, … */
      readonly places: Float32Array
      readonly colours: Uint8Array
      /** Nothing moves any more. */
      readonly isSettled: boolean
    }
  | { readonly kind: 'picture'; readonly bitmap: ImageBitmap; readonly view: View }
