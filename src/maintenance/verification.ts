export interface Verification {
  /** Place of the last event that was compared. */
  readonly seq: number
  readonly events: number
}
