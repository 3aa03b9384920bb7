"""The only files of the pack that touch what is inside ComfyUI.

Hosts from 0.3.75 on are supported. What a newer one adds is looked up when it is needed, never at import. The core's
reading of checkpoints is imported when a checkpoint is read: the host imports these files each time it starts.
"""
