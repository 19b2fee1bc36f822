/**
 * Page cursors that only this kernel can issue: a position sealed with a key that all nodes share.
 */
import { createHmac, timingSafeEqual } from 'node:crypto'
import type { SigningKeys } from './signing-keys.ts'

/** The text is no cursor that was issued for this list. */
export class UnknownCursor extends Error {
  override name = 'UnknownCursor'
}

const MAC_BYTES = 12

export class CursorSeal {
  readonly #key: Buffer

  constructor(key: Buffer) {
    this.#key = key
  }

  static async load(keys: SigningKeys): Promise<CursorSeal> {
    return new CursorSeal(await keys.signingKey('cursor'))
  }

  /**
   * Makes the cursor of a position in a list; `list` names the list with all that selects its
   * entries.
   */
  seal(list: string, position: Buffer): string {
    return Buffer.concat([this.#mac(list, position), position]).toString('base64url')
  }

  /** The position in a cursor. Throws `UnknownCursor` unless `seal` made it for the same list. */
  open(list: string, cursor: string): Buffer {
    const bytes = Buffer.from(cursor, 'base64url')
    const position = bytes.subarray(MAC_BYTES)
    // The comparison with its own encoding refuses other spellings of the same bytes.
    if (bytes.length < MAC_BYTES || bytes.toString('base64url') !== cursor)
      throw new UnknownCursor()
    if (!timingSafeEqual(bytes.subarray(0, MAC_BYTES), this.#mac(list, position)))
      throw new UnknownCursor()
    return position
  }

  #mac(list: string, position: Buffer): Buffer {
    return createHmac('sha256', this.#key)
      .update(`${list}\0`)
      .update(position)
      .digest()
      .subarray(0, MAC_BYTES)
  }
}
