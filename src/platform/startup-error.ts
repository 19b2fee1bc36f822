/** The program cannot start as it is set up; the message says what to do. */
export class StartupError extends Error {
  override name = 'StartupError'
}
