/** How long an answer will be, before it is made: what may not be held need not be made at all. */
import type { Message } from '../messaging/message-queue.ts'
import type { Hold } from '../platform/byte-budget.ts'

/**
 * Bytes that an answer holds for each of its JSON: as text, and as what the socket has yet to send.
 */
export const HELD_OF_AN_ANSWER = 2
/** What a character takes as JSON at most (`\u0000`). */
export const BYTES_OF_A_CHARACTER = 6

/** A page ends before it has so many bytes of JSON, but for its first message. */
const MAX_PAGE_BYTES = 8 * 1_048_576
/** Of a message as JSON, beside its content: names, ids, addresses and time are 250 bytes. */
const ENVELOPE_BYTES = 300
/** A text of fewer bytes at most is not looked at: a page of them is far from full. */
const SHORT_TEXT_BYTES = 8_192

/**
 * Decides which messages fit into an answer, one after the other, and has it hold them. The
 * decision throws `Overloaded`.
 */
export function pageOfMessages(answer: Hold): (message: Message) => boolean {
  let bytes = 0
  return ({ content }) => {
    const more = ENVELOPE_BYTES + jsonBytes(content)
    const needed = Math.max(answer.bytes, HELD_OF_AN_ANSWER * (bytes + more))
    if (bytes === 0) answer.resize(needed)
    else if (bytes + more > MAX_PAGE_BYTES || !answer.tryResize(needed)) return false
    bytes += more
    return true
  }
}

/** Has an answer hold a text that it is about to carry. Throws `Overloaded`. */
export function holdText(answer: Hold, text: string): void {
  answer.resize(Math.max(answer.bytes, HELD_OF_AN_ANSWER * (ENVELOPE_BYTES + jsonBytes(text))))
}

/**
 * Bytes of a text as JSON; of a short one the most that they can be. Counting takes a twentieth of
 * what making it would.
 */
export function jsonBytes(text: string): number {
  const most = BYTES_OF_A_CHARACTER * text.length
  if (most <= SHORT_TEXT_BYTES) return most
  let escapes = 0
  for (let index = 0; index < text.length; index++) {
    const code = text.charCodeAt(index)
    // RFC 8259 section 7; these five have a short form.
    if (
      code === 0x22 ||
      code === 0x5c ||
      code === 0x08 ||
      code === 0x0c ||
      code === 0x0a ||
      code === 0x0d ||
      code === 0x09
    )
      escapes++
    else if (code < 0x20) escapes += BYTES_OF_A_CHARACTER - 1
  }
  return Buffer.byteLength(text) + escapes
}
