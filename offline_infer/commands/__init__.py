"""The commands of ``offline-infer``, grouped by what a person is doing. Modules here import nothing heavy at the top."""
