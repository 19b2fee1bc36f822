/**
 * Loads all that the commands load, and ends. With `NODE_COMPILE_CACHE` set Node keeps what it made
 * of it, so that later starts take a fraction of the time and of the memory: they need not strip
 * types.
 */
await Promise.all([
  import('./config.ts'),
  import('./commands/api.ts'),
  import('./commands/serve.ts'),
  import('./commands/worker.ts'),
  import('./access/bcrypt-thread.ts'),
  import('./storage/embedded-writer.ts'),
])
