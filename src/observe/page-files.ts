/** The page for people: what was built from `page/`, as files to serve. */
import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { extname, join } from 'node:path'
import { gzipSync } from 'node:zlib'
import type { StaticFile } from '../api/static-files.ts'

const BUILT = join(import.meta.dirname, 'page', 'dist')

const TYPES: Readonly<Record<string, string>> = {
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.svg': 'image/svg+xml',
}

/**
 * Nothing from elsewhere, and nothing inline: what agents wrote cannot run, whatever becomes of it
 * in the page.
 */
const SECURITY_HEADERS = {
  'Content-Security-Policy':
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data:; " +
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  'X-Content-Type-Options': 'nosniff',
  'Referrer-Policy': 'no-referrer',
}

/** Names of assets have a hash of what is in them. */
const IMMUTABLE = 'public, max-age=31536000, immutable'
const ASK_EACH_TIME = 'no-cache'

/** By path, held in memory: some 100 KiB. Empty where the page was not built. */
export function loadPage(): StaticFile[] {
  if (!existsSync(BUILT)) return []
  const assets = readdirSync(join(BUILT, 'assets')).map((name) => `assets/${name}`)
  return ['index.html', ...assets].map((name) => {
    const bytes = readFileSync(join(BUILT, name))
    const isEntry = name === 'index.html'
    return {
      path: isEntry ? '/' : `/${name}`,
      bytes,
      gzipped: gzipSync(bytes),
      headers: {
        'Content-Type': TYPES[extname(name)] ?? 'application/octet-stream',
        'Cache-Control': isEntry ? ASK_EACH_TIME : IMMUTABLE,
        ETag: `"${createHash('sha256').update(bytes).digest('base64url').slice(0, 22)}"`,
        Vary: 'Accept-Encoding',
        ...SECURITY_HEADERS,
      },
    }
  })
}
