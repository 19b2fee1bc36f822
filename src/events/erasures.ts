/**
 * What was erased from the log on purpose: their sequence numbers stay, and what is left of them is
 * kept apart.
 */
import type { Batch } from './batch.ts'

export interface Erasures {
  /**
   * What is left of a message of the stream that was erased.
   *
   * @param message its number in the stream
   * @returns all its events, of which some say no more what they said; undefined for one that was
   *   not erased
   * @throws Unavailable
   */
  find(message: number): Promise<Batch | undefined>
}
