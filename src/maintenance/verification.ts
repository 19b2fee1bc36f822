export interface Verification {
  /** Sequence number of the last event that was compared. */
  readonly seq: number
  readonly events: number
}
