/**
 * Builds the page from `src/observe/page/` into `dist/` there. Where Vite was not installed
 * (`--omit=dev`) nothing is built.
 */
import { join } from 'node:path'

const root = join(import.meta.dirname, 'page')

const vite = await import('vite').catch((error: NodeJS.ErrnoException) => {
  if (error.code !== 'ERR_MODULE_NOT_FOUND') throw error
  console.warn('The page is not built: that takes the development dependencies (npm ci).')
})

await vite?.build({
  root,
  configFile: false,
  logLevel: 'warn',
  oxc: { jsx: { runtime: 'automatic', importSource: 'preact' } },
  build: {
    outDir: 'dist',
    emptyOutDir: true,
    target: 'es2022',
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
  },
})
