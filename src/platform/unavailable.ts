/**
 * A part of the kernel is out: it does not answer, refuses the connection, or cannot take anything
 * now. Nothing is known of what it did. Whoever asked may try again. Every error of that kind
 * extends this class, so that there is one place where it becomes a 503.
 */
export class Unavailable extends Error {
  override name = 'Unavailable'
}
