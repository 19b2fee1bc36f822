/** What is printed for people, and what they are asked. */
import { createInterface } from 'node:readline'

/**
 * What somebody else has written must not steer the terminal: controls, and what hides or turns the
 * direction of text.
 */
export function escapeControls(text: string): string {
  return text.replaceAll(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/gu, (character) => {
    const code = character.codePointAt(0) ?? 0
    return `\\u${code.toString(16).padStart(4, '0')}`
  })
}

/** Whether there is somebody to ask. */
export function isAtTerminal(): boolean {
  return process.stdin.isTTY === true && process.stderr.isTTY === true
}

/**
 * Asks a question; whether it was answered with `yes`. Ctrl-C and the end of the input are none.
 */
export async function isConfirmed(question: string): Promise<boolean> {
  const terminal = createInterface({ input: process.stdin, output: process.stderr })
  const { promise: given, resolve } = Promise.withResolvers<string>()
  terminal
    .once('SIGINT', () => resolve(''))
    .once('close', () => resolve(''))
    .once('line', resolve)
  terminal.setPrompt(`${question} Type yes: `)
  terminal.prompt()
  const answer = await given
  terminal.close()
  return answer.trim().toLowerCase() === 'yes'
}
