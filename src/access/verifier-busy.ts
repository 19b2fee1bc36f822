/** Too many tokens are waiting to be hashed or checked, of everybody or of this one operator. */
export class VerifierBusy extends Error {
  override name = 'VerifierBusy'
}
