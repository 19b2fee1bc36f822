/** What production and tests share: the configuration in deploy/. */
import { join } from 'node:path'

export const DEPLOY = join(import.meta.dirname, '..', '..', 'deploy')

export function loopbackUrl(
  scheme: string,
  user: string,
  password: string,
  port: number,
  path = '',
): string {
  return `${scheme}://${user}:${password}@127.0.0.1:${port}${path === '' ? '' : `/${path}`}`
}
